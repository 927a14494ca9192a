"""API keys: each stands for a project and a role."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from tidemill.api import errors
from tidemill.api.view.keyring import Keyring
from tidemill.configuration.settings import Settings, SettingsError
from tidemill.schemas.log.messages import KeyRecord
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources import access
from tidemill.schemas.resources.access import DEFAULT_PROJECT, Role

SETTINGS_KEY_ID = "key_settings"
"""The id of the settings' key."""


@dataclass(frozen=True, kw_only=True)
class Principal:
    """The caller of a request: it reads and writes objects of its project only."""

    project: str
    role: Role
    key_id: str = SETTINGS_KEY_ID
    """The id of its key."""
    expires_at: int | None = None
    """When its key expires, Unix seconds."""

    @property
    def is_operator(self) -> bool:
        """Whether it may act for every project, not only its own."""
        return self.role.covers(Role.OPERATOR)


class Keys:
    """Known keys, as digests, so that the time of a comparison reveals nothing about a key."""

    def __init__(self, fixed: Mapping[str, Principal], keyring: Keyring, clock: Clock) -> None:
        """Accept these keys; `fixed` has those of the settings, which cannot be revoked, by their digests."""
        self._fixed = dict(fixed)
        self._keyring = keyring
        self._clock = clock

    def principal(self, secret: str | None, *, is_whole: bool) -> Principal:
        """The caller that the key of a request stands for.

        Without `is_whole`, the keyring may lack keys that the log has.

        Raises:
            ApiError: 401, there is no key, or an unknown, revoked or expired one; 503, the keyring may not have it
                yet.
        """
        if not (secret := (secret or "").strip()):
            raise errors.no_key()
        digest = access.digest(secret)
        for known, principal in self._fixed.items():
            if hmac.compare_digest(known, digest):
                return principal
        if not access.is_secret(secret):
            raise errors.wrong_key(secret)
        if not is_whole:
            raise errors.unavailable("server's view of the log")
        return self._of_record(secret, self._keyring.by_digest(digest), digest)

    def _of_record(self, secret: str, record: KeyRecord | None, digest: str) -> Principal:
        if record is None or not hmac.compare_digest(record.sha256, digest):
            raise errors.wrong_key(secret)
        if not record.key.opens(self._clock()):
            raise errors.ended_key(record.key.hint, "expired" if record.key.revoked_at is None else "revoked")
        key = record.key
        return Principal(project=key.project, role=key.role, key_id=key.id, expires_at=key.expires_at)


def keys(settings: Settings, keyring: Keyring, clock: Clock) -> Keys:
    """The keys of an installation: the key of the settings is an operator's, in the default project.

    Raises:
        SettingsError: No key is set.
    """
    return Keys({bootstrap(settings): Principal(project=DEFAULT_PROJECT, role=Role.OPERATOR)}, keyring, clock)


def bootstrap(settings: Settings) -> str:
    """The digest of the key that the settings name.

    Raises:
        SettingsError: No key is set, so no other key could be created.
    """
    if (digest := settings.api_key_digest) is None:
        raise SettingsError(
            "api_key: not set; the api needs one (TIDEMILL_API_KEY, or TIDEMILL_API_KEY_SHA256); "
            "`tidemill keys make` prints one"
        )
    return digest
