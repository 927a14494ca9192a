"""API keys: each stands for a project and a role."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tidemill.api import errors
from tidemill.api.view.keyring import Keyring
from tidemill.configuration.settings import Settings, SettingsError
from tidemill.schemas.log.messages import KeyRecord
from tidemill.schemas.ports import Clock
from tidemill.schemas.resources import access
from tidemill.schemas.resources.access import DEFAULT_PROJECT, Role

ALL_PROJECTS = "*"
SETTINGS_KEY_ID = "key_settings"
"""The id of the settings' key."""


@dataclass(frozen=True, kw_only=True)
class Principal:
    """The caller of a request: it reads and writes objects of its project only."""

    project: str
    role: Role
    key_id: str = SETTINGS_KEY_ID
    """The id of its key, or of the person."""
    expires_at: int | None = None
    """When its key, or the person's session, expires, Unix seconds."""
    digest: str = field(default="", repr=False)
    """The SHA-256 of its key, in hex."""
    session_id: str | None = None
    """Its session of the dashboard; None if the request has the key itself."""
    person: str | None = None
    """The verified email address, or else the provider's `sub`, of a person without a key."""
    projects: tuple[str, ...] = ()
    """The projects that a person may choose; an operator may choose any."""

    @property
    def actor(self) -> str:
        """Its name in the audit trail."""
        return self.person or self.key_id

    @property
    def is_operator(self) -> bool:
        """Whether it may act for every project, not only its own."""
        return self.role.covers(Role.OPERATOR)

    def require(self, role: Role) -> None:
        """Check that it has at least a role.

        Raises:
            ApiError: 403, it has less.
        """
        if not self.role.covers(role):
            raise errors.forbidden(self.role, role)

    def require_project(self, project: str | None) -> None:
        """Check that it may act for a project; None is all projects.

        Raises:
            ApiError: 403, it is another project, and the caller is not an operator.
        """
        if project != self.project:
            self.require(Role.OPERATOR)

    def chosen(self, asked: str | None) -> str | None:
        """The project that a request asks for, by default its own; None is all, for which `ALL_PROJECTS` stands.

        Raises:
            ApiError: 403, see `require_project`.
        """
        project = None if asked == ALL_PROJECTS else asked or self.project
        self.require_project(project)
        return project


class Keys:
    """Known keys, as digests, so that the time of a comparison reveals nothing about a key."""

    def __init__(self, fixed: Mapping[str, Principal], keyring: Keyring, clock: Clock) -> None:
        """Accept these keys; `fixed` has those of the settings, which cannot be revoked, by their digests."""
        self._fixed = {digest: replace(one, digest=digest) for digest, one in fixed.items()}
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
        record = self._keyring.by_digest(digest)
        if record is None or not hmac.compare_digest(record.sha256, digest):
            raise errors.wrong_key(secret)
        return self._of_record(record)

    def named(self, key_id: str, *, is_whole: bool) -> Principal:
        """The caller that the key with an id stands for.

        Without `is_whole`, the keyring may lack keys that the log has.

        Raises:
            ApiError: 401, the key is unknown, revoked or expired; 503, the keyring may not have it yet.
        """
        for principal in self._fixed.values():
            if principal.key_id == key_id:
                return principal
        if not is_whole:
            raise errors.unavailable("server's view of the log")
        if (record := self._keyring.by_id(key_id)) is None:
            raise errors.ended_session()
        return self._of_record(record)

    def _of_record(self, record: KeyRecord) -> Principal:
        if not record.key.opens(self._clock()):
            raise errors.ended_key(record.key.hint, "expired" if record.key.revoked_at is None else "revoked")
        key = record.key
        return Principal(
            project=key.project, role=key.role, key_id=key.id, expires_at=key.expires_at, digest=record.sha256
        )


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
