"""Who is asking: a key stands for a project."""

import hashlib
import hmac
from dataclasses import dataclass

from tidemill.api import errors
from tidemill.settings import Settings, SettingsError

DEFAULT_PROJECT = "default"


@dataclass(frozen=True, kw_only=True)
class Principal:
    """On whose behalf a request is answered: everything read and written is the project's."""

    project: str


class Keys:
    """The keys that are known, as digests: what a comparison takes says nothing about a key."""

    def __init__(self, projects: dict[str, str]) -> None:
        """Take the keys.

        Args:
            projects: Key to project.
        """
        self._projects = {_digest(key): project for key, project in projects.items()}

    def principal(self, authorization: str | None) -> Principal:
        """Whom an `Authorization` header stands for.

        Raises:
            ApiError: 401, there is no key or it is not known.
        """
        scheme, _, key = (authorization or "").strip().partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise errors.no_key()
        digest = _digest(key)
        for known, project in self._projects.items():
            if hmac.compare_digest(known, digest):
                return Principal(project=project)
        raise errors.wrong_key(key)


def keys(settings: Settings) -> Keys:
    """The keys of an installation.

    Raises:
        SettingsError: None is set, and a server without a key would be open to anybody.
    """
    secret = settings.api_key.get_secret_value() if settings.api_key else ""
    if not secret:
        raise SettingsError("api_key: not set; the api needs one (TIDEMILL_API_KEY)")
    return Keys({secret: DEFAULT_PROJECT})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
