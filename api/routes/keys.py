"""The routes of API keys and of producers' tokens.

An admin reaches the keys of its project, an operator those of all. Tokens: see `schemas/log/producer_token.py`.
"""

import logging
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from tidemill.api import errors
from tidemill.api.access.auth import Principal
from tidemill.api.dependencies import AdminCaller, Caller, Dependencies, Deps, JsonBody, json
from tidemill.api.openapi import Route
from tidemill.api.requests import paging, reading
from tidemill.api.requests.fields import KeyId, OneOf, Project, Stream
from tidemill.api.requests.paging import PageQuery
from tidemill.api.requests.parts import Query
from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas.log import producer_token, topics
from tidemill.schemas.log.messages import KeyRecord
from tidemill.schemas.log.producer_token import LIFE_SECONDS_DEFAULT
from tidemill.schemas.resources import access
from tidemill.schemas.resources.access import ApiKey, Role
from tidemill.schemas.resources.audit import Action

LIMIT_DEFAULT: Final = 20
LIMIT_MAX: Final = 100
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
    """Its lifetime; by default it does not expire."""


class KeysQuery(PageQuery):
    """The query of a list of keys."""

    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX), reading.WHOLE] = LIMIT_DEFAULT
    """How many a page has at most."""
    project: Project | None = None
    """Only the keys of this project."""


class NewKey(ApiKey):
    """A new key; no other answer has its secret."""

    secret: str


class KeyPage(BaseModel):
    """Keys, the newest first."""

    object: Literal["list"] = "list"
    data: list[ApiKey]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Revoked(BaseModel):
    """A revoked key; its record stays."""

    id: str
    object: Literal["key"] = "key"
    deleted: Literal[True] = True


class TokenRequest(reading.Body):
    """A new token."""

    model_config = ConfigDict(extra="forbid")

    stream: Stream
    """The stream that its holder may produce to; printable characters."""
    expires_in_seconds: Annotated[
        int, Field(ge=producer_token.LIFE_SECONDS_MIN, le=producer_token.LIFE_SECONDS_MAX)
    ] = LIFE_SECONDS_DEFAULT
    """How long it is good, and never longer than its key. What the log gets in that time is taken, however late it
    is read."""


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
    role = Role(body.role)
    if body.project not in {None, caller.project} and not caller.is_operator:
        raise errors.forbidden(caller.role, Role.OPERATOR)
    if not caller.role.covers(role):
        raise errors.forbidden(caller.role, role)
    project, now, secret = body.project or caller.project, int(deps.clock()), access.new_secret()
    key = ApiKey(
        id=access.new_key_id(),
        name=body.name,
        project=project,
        role=role,
        hint=access.hint(secret),
        created_at=now,
        expires_at=None if body.expires_in_seconds is None else now + body.expires_in_seconds,
    )
    about = {"name": key.name, "role": key.role, "project": project}
    with deps.booking(project) as booking:
        booking.key()
        await deps.trail.record(request, caller, Action.KEY_CREATE, key.id, owner=project, **about)
        await _publish(deps, KeyRecord(key=key, sha256=access.digest(secret)))
    _log.info("created the key %s of the project %s with the role %s", key.id, key.project, key.role)
    return json(NewKey(**key.model_dump(), secret=secret).model_dump_json().encode())


@router.get("/v1/admin/keys", response_model=KeyPage, tags=["admin"])
async def index(
    deps: Deps, caller: AdminCaller, query: Annotated[KeysQuery, Depends(Query(KeysQuery))]
) -> Response:
    """List keys, also revoked ones; an operator may list those of all projects or of one."""
    page = query.page
    project = query.project or (None if caller.is_operator else caller.project)
    if project != caller.project and not caller.is_operator:
        raise errors.forbidden(caller.role, Role.OPERATOR)
    rows = deps.view.keyring.rows(project, page.after, page.limit + 1)
    if rows is None:
        raise errors.unknown_cursor(page.after or "")
    return json(paging.write(page, rows))


@router.get("/v1/admin/keys/{key_id}", response_model=ApiKey, tags=["admin"])
async def retrieve(deps: Deps, caller: AdminCaller, key_id: KeyId) -> Response:
    """Get a key, without its secret."""
    return json(_known(deps, key_id, caller).key.model_dump_json().encode())


@router.delete("/v1/admin/keys/{key_id}", response_model=Revoked, tags=["admin"])
async def revoke(request: Request, deps: Deps, caller: AdminCaller, key_id: KeyId) -> Response:
    """Revoke a key; within seconds no api process accepts it. A second revocation changes nothing."""
    record = _known(deps, key_id, caller)
    if not caller.role.covers(record.key.role):
        raise errors.forbidden(caller.role, record.key.role)
    if record.key.revoked_at is None:
        about = {"name": record.key.name, "project": record.key.project}
        await deps.trail.record(request, caller, Action.KEY_REVOKE, key_id, owner=record.key.project, **about)
        key = record.key.model_copy(update={"revoked_at": int(deps.clock())})
        await _publish(deps, record.model_copy(update={"key": key}))
        _log.info("revoked the key %s", key.id)
    return json(Revoked(id=record.key.id).model_dump_json().encode())


@router.post("/v1/intake/tokens", response_model=NewToken, tags=["intake"])
async def create_token(
    request: Request, deps: Deps, caller: Caller, body: Annotated[TokenRequest, Depends(JsonBody(TokenRequest))]
) -> Response:
    """Create a token, with which a direct producer may write to one stream of the project."""
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
    return json(made.model_dump_json().encode())


async def sign_again(deps: Dependencies) -> None:
    """Sign again the records that another trusted key signed, so that the other can be removed."""
    records = deps.view.keyring.signed_by_others(deps.signer.kid)
    try:
        for record in records:
            await _publish(deps, record)
    except LogUnavailable:
        _log.warning("the log does not answer; records that another key signed stay so until the next start")
    if records:
        _log.warning("signed %d keys again, which another key had signed", len(records))


def _known(deps: Dependencies, key_id: str, caller: Principal) -> KeyRecord:
    record = deps.view.keyring.by_id(key_id)
    if record is None or (record.key.project != caller.project and not caller.is_operator):
        raise errors.no_key_with(key_id)
    return record


async def _publish(deps: Dependencies, record: KeyRecord) -> None:
    await deps.log.send(topics.KEYS.name, record.key.id, deps.signer.key_record(record), headers=[])
    deps.view.keyring.put(record, deps.signer.kid)
