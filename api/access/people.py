"""People who sign in with OpenID Connect, and what the grants of the settings let them do."""

import hashlib
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from tidemill.api import errors
from tidemill.api.access.auth import Principal
from tidemill.api.access.openid import SUB_CHARS_MAX, Identity
from tidemill.configuration.projects import GRANTS_MAX, OpenId
from tidemill.schemas.resources.access import Role

_ID_HEX: Final = 32
_Text = Annotated[str, Field(min_length=1, max_length=SUB_CHARS_MAX)]


class Person(BaseModel):
    """A person in the claims of a session."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sub: _Text
    """The provider's id of the person."""
    email: _Text | None
    grants: Annotated[list[Annotated[int, Field(ge=0, lt=GRANTS_MAX)]], Field(min_length=1, max_length=GRANTS_MAX)]
    """Positions of the person's grants in the settings; the session has a fingerprint of these settings."""


class People:
    """Turns people who signed in into callers."""

    def __init__(self, settings: OpenId) -> None:
        self._settings = settings
        named = settings.model_dump_json(include={"issuer", "client_id", "claim", "grants"})
        self._digest = hashlib.sha256(named.encode()).hexdigest()

    def person(self, identity: Identity) -> Person | None:
        """The person of an identity; None without a grant."""
        grants = [place for place, one in enumerate(self._settings.grants) if one.value in identity.values]
        return Person(sub=identity.sub, email=identity.email, grants=grants) if grants else None

    def caller(self, person: Person, *, since: int, project: str | None = None) -> Principal:
        """The caller for a person who signed in at `since` (Unix seconds), in the chosen project or the first one.

        Raises:
            ApiError: 401, the person has no grant for the project any more.
        """
        known = self._settings.grants
        grants = [known[place] for place in person.grants if place < len(known)]
        roles: dict[str, Role] = {}
        for grant in grants:
            if (role := roles.get(grant.project)) is None or grant.role.covers(role):
                roles[grant.project] = grant.role
        is_operator = Role.OPERATOR in roles.values()
        project = project or next(iter(roles), None)
        if project is None or (project not in roles and not is_operator):
            raise errors.ended_session()
        named = f"{self._settings.issuer}\n{person.sub}"
        return Principal(
            project=project,
            role=Role.OPERATOR if is_operator else roles[project],
            key_id=f"person_{hashlib.sha256(named.encode()).hexdigest()[:_ID_HEX]}",
            expires_at=since + self._settings.session_seconds,
            digest=self._digest,
            person=person.email or person.sub,
            projects=tuple(roles),
        )
