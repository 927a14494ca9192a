"""The routes of API keys and of producers' tokens.

An admin reaches the keys of its project, an operator those of all. Tokens: see `schemas/log/producer_token.py`.
"""

import logging
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from tidemill.api import errors, lookup
from tidemill.api.access.auth import Principal
from tidemill.api.dependencies import (
    AdminCaller,
    Caller,
    Dependencies,
    Deps,
    JsonBody,
    ViewDep,
    json,
)
from tidemill.api.openapi import Route
from tidemill.api.requests import paging, reading
from tidemill.api.requests.fields import KeyId, OneOf, Project, Stream
from tidemill.api.requests.filters import LIMIT_DEFAULT, LIMIT_MAX
from tidemill.api.requests.paging import ListPage, PageQuery
from tidemill.api.requests.parts import Query
from tidemill.api.view.view import View
from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas.log import producer_token
from tidemill.schemas.log.messages import KeyRecord
from tidemill.schemas.log.producer_token import LIFE_SECONDS_DEFAULT
from tidemill.schemas.resources import access
from tidemill.schemas.resources.access import ApiKey, Role
from tidemill.schemas.resources.audit import Action
from tidemill.wording import counted

NAME_CHARS_MAX: Final = 100
LIFE_SECONDS_MIN: Final = 60
LIFE_SECONDS_MAX: Final = 10 * 366 * 86_400

_log = logging.getLogger(__name__)

router = APIRouter(route_class=Route)


class KeyRequest(reading.Body):
    """A new key. Unknown fields are refused: a misspelt `expires_in_seconds` would make a key without expiry."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]
    """A label of 1 to 100 characters."""
    project: Project | None = None
    """Its project: letters, digits, `.`, `_` and `-`, at most 64; by default that of the caller."""
    role: Annotated[str, OneOf(list(Role))] = Role.WRITE
    """Its role."""
    expires_in_seconds: Annotated[int, Field(ge=LIFE_SECONDS_MIN, le=LIFE_SECONDS_MAX)] | None = None
    """Its lifetime; by default it does not expire. No key outlives the one that made it."""


class KeysQuery(PageQuery):
    """The query of a list of keys."""

    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX), reading.WHOLE] = LIMIT_DEFAULT
    """How many a page has at most."""
    project: Project | None = None
    """Only the keys of this project."""


class NewKey(ApiKey):
    """A new key; no other answer has its secret."""

    secret: str


class Revoked(BaseModel):
    """A revoked key; its record stays."""

    id: str
    object: Literal["key"] = "key"
    deleted: Literal[True] = True


class TokenRequest(reading.Body):
    """A new token."""

    model_config = ConfigDict(extra="forbid")

    stream: Stream
    """The stream that it is for; printable characters."""
    expires_in_seconds: Annotated[
        int, Field(ge=producer_token.LIFE_SECONDS_MIN, le=producer_token.LIFE_SECONDS_MAX)
    ] = LIFE_SECONDS_DEFAULT
    """How long it is valid, at most as long as its key. Ingest accepts the records that the log gets in that time,
    even if it reads them later."""


class NewToken(BaseModel):
    """A new token; no other answer has it."""

    object: Literal["producer_token"] = "producer_token"
    token: str
    stream: str
    project: str
    key: str
    """Id of the API key that created it; the token ends with the key."""
    created_at: int
    expires_at: int


@router.post("/v1/admin/keys", response_model=NewKey, tags=["admin"])
async def create(
    request: Request, deps: Deps, caller: AdminCaller, body: Annotated[KeyRequest, Depends(JsonBody(KeyRequest))]
) -> Response:
    """Create a key. No other answer has its secret; every api process accepts it within seconds."""
    role, project = Role(body.role), body.project or caller.project
    caller.require_project(project)
    caller.require(role)
    now, secret = int(deps.clock()), access.new_secret()
    ends = [now + body.expires_in_seconds] if body.expires_in_seconds is not None else []
    if caller.person is None and caller.expires_at is not None:
        # A person's session ends within hours; their keys end when an admin revokes them.
        ends.append(caller.expires_at)
    key = ApiKey(
        id=access.new_key_id(),
        name=body.name,
        project=project,
        role=role,
        hint=access.hint(secret),
        created_at=now,
        created_by=caller.actor,
        expires_at=min(ends, default=None),
    )
    about = {"name": key.name, "role": key.role, "project": project}
    with deps.booking(project, stores=False) as booking:
        booking.reserve_key()
        await deps.trail.record(request, caller, Action.KEY_CREATE, key.id, owner=project, **about)
        await deps.publisher.key(KeyRecord(key=key, sha256=access.digest(secret)))
    _log.info("created the key %s of the project %s with the role %s", key.id, key.project, key.role)
    return json(NewKey(**key.model_dump(), secret=secret))


@router.get("/v1/admin/keys", response_model=ListPage[ApiKey], tags=["admin"])
async def index(
    view: ViewDep, caller: AdminCaller, query: Annotated[KeysQuery, Depends(Query(KeysQuery))]
) -> Response:
    """List keys, also revoked ones; an operator may list those of all projects or of one."""
    project = query.project or (None if caller.is_operator else caller.project)
    caller.require_project(project)
    rows = await lookup.page(view, query.after, lambda: view.keyring.rows(project, query.page))
    return json(paging.write(query.page, rows))


@router.get("/v1/admin/keys/{key_id}", response_model=ApiKey, tags=["admin"])
async def retrieve(view: ViewDep, caller: AdminCaller, key_id: KeyId) -> Response:
    """Get a key, without its secret."""
    return json((await _known(view, key_id, caller)).key)


@router.delete("/v1/admin/keys/{key_id}", response_model=Revoked, tags=["admin"])
async def revoke(request: Request, deps: Deps, caller: AdminCaller, key_id: KeyId) -> Response:
    """Revoke a key; within seconds no api process accepts it. A second revocation changes nothing."""
    record = await _known(deps.view, key_id, caller)
    caller.require(record.key.role)
    if record.key.revoked_at is None:
        about = {"name": record.key.name, "project": record.key.project}
        await deps.trail.record(request, caller, Action.KEY_REVOKE, key_id, owner=record.key.project, **about)
        key = record.key.model_copy(update={"revoked_at": int(deps.clock())})
        await deps.publisher.key(record.model_copy(update={"key": key}))
        _log.info("revoked the key %s", key.id)
    return json(Revoked(id=record.key.id))


@router.post("/v1/intake/tokens", response_model=NewToken, tags=["intake"])
async def create_token(
    request: Request, deps: Deps, caller: Caller, body: Annotated[TokenRequest, Depends(JsonBody(TokenRequest))]
) -> Response:
    """Create a token for a direct producer of one stream of the project."""
    if caller.person is not None:
        # A token is revoked with its key.
        raise errors.needs_key()
    now = int(deps.clock())
    until = now + body.expires_in_seconds
    if caller.expires_at is not None:
        # Ingest checks whether the key is revoked, not whether it has expired.
        until = min(until, caller.expires_at)
    claims = producer_token.Claims(sub=body.stream, project=caller.project, key=caller.key_id, iat=now, exp=until)
    made = NewToken(
        token=producer_token.token(deps.signer, claims), stream=claims.sub, project=claims.project,
        key=claims.key, created_at=claims.iat, expires_at=claims.exp,
    )  # fmt: skip
    await deps.trail.record(request, caller, Action.TOKEN_CREATE, body.stream, expires_at=str(claims.exp))
    return json(made)


async def sign_again(deps: Dependencies) -> None:
    """Sign records again that another trusted key signed, so that the other key can be removed."""
    records = deps.view.keyring.signed_by_others(deps.signer.kid)
    try:
        for record in records:
            await deps.publisher.key(record)
    except LogUnavailable:
        _log.warning("the log does not answer; the next start signs the records again that another key signed")
    if records:
        _log.warning("signed %s again, which another key had signed", counted(len(records), "key"))


async def _known(view: View, key_id: str, caller: Principal) -> KeyRecord:
    return await lookup.key(view, None if caller.is_operator else caller.project, key_id)
