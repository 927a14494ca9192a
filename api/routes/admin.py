"""The routes of keys: an admin's reach the keys of its project, an operator's those of all."""

import logging
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from tidemill.api import errors, responses
from tidemill.api.access.auth import Principal
from tidemill.api.dependencies import AdminCaller, Dependencies, Deps, body, json
from tidemill.api.requests import paging, reading
from tidemill.api.requests.fields import KeyId, OneOf, Project
from tidemill.api.requests.paging import PageQuery
from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas.log import topics
from tidemill.schemas.log.messages import KeyRecord
from tidemill.schemas.resources import access
from tidemill.schemas.resources.access import ApiKey, Role
from tidemill.schemas.resources.audit import Action

LIMIT_DEFAULT: Final = 20
LIMIT_MAX: Final = 100
NAME_CHARS_MAX: Final = 100
LIFE_SECONDS_MIN: Final = 60
LIFE_SECONDS_MAX: Final = 10 * 366 * 86_400

_log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/admin/keys", tags=["admin"])


class KeyWish(reading.Body):
    """What a key is made of; a misspelt `expires_in_seconds` would make a key that lives for good."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]
    """What it is for, 1 to 100 characters; shown in lists."""
    project: Project | None = None
    """Whose it is: letters, digits, `.`, `_` and `-`, at most 64; by default the project of the key that asks."""
    role: Annotated[str, OneOf(list(Role))] = Role.WRITE
    """What it may do."""
    expires_in_seconds: Annotated[int, Field(ge=LIFE_SECONDS_MIN, le=LIFE_SECONDS_MAX)] | None = None
    """How long it lives; by default until it is revoked."""


class KeysQuery(PageQuery):
    """The query of a list of keys."""

    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX), reading.WHOLE] = LIMIT_DEFAULT
    """How many a page has at most."""
    project: Project | None = None
    """Only the keys of this project."""


class NewKey(ApiKey):
    """A key that was just made: the only answer with its secret."""

    secret: str


class KeyPage(BaseModel):
    """Keys, the newest first."""

    object: Literal["list"] = "list"
    data: list[ApiKey]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Revoked(BaseModel):
    """The key opens nothing any more; its record stays."""

    id: str
    object: Literal["key"] = "key"
    deleted: Literal[True] = True


_BODY: Final = {"requestBody": responses.body(KeyWish)}
_INDEX: Final = {"parameters": reading.described(KeysQuery)}


@router.post("", response_model=NewKey, openapi_extra=_BODY)
async def create(request: Request, deps: Deps, caller: AdminCaller) -> Response:
    """Make a key. Its secret is in this answer and nowhere else; it opens every api process within seconds."""
    wish = reading.body(KeyWish, await body(request), deps.settings)
    role = Role(wish.role)
    if wish.project not in {None, caller.project} and not caller.is_operator:
        raise errors.forbidden(caller.role, Role.OPERATOR)
    if not caller.role.covers(role):
        raise errors.forbidden(caller.role, role)
    project, now, secret = wish.project or caller.project, int(deps.clock()), access.new_secret()
    key = ApiKey(
        id=access.new_key_id(),
        name=wish.name,
        project=project,
        role=role,
        hint=access.hint(secret),
        created_at=now,
        expires_at=None if wish.expires_in_seconds is None else now + wish.expires_in_seconds,
    )
    about = {"name": key.name, "role": key.role, "project": project}
    with deps.booking(project) as booking:
        booking.key()
        await deps.trail.tell(request, caller, Action.KEY_CREATE, key.id, whose=project, **about)
        await _publish(deps, KeyRecord(key=key, sha256=access.digest(secret)))
    _log.info("%s was made, a key of the project %s with the role %s", key.id, key.project, key.role)
    return json(NewKey(**key.model_dump(), secret=secret).model_dump_json().encode())


@router.get("", response_model=KeyPage, openapi_extra=_INDEX)
async def index(request: Request, deps: Deps, caller: AdminCaller) -> Response:
    """List keys, also those that are revoked: of the project; for an operator of all, or of the one it names."""
    wanted = reading.query(KeysQuery, request.query_params.multi_items())
    page = wanted.page
    project = wanted.project or (None if caller.is_operator else caller.project)
    if project != caller.project and not caller.is_operator:
        raise errors.forbidden(caller.role, Role.OPERATOR)
    rows = deps.view.keyring.rows(project, page.after, page.limit + 1)
    if rows is None:
        raise errors.unknown_cursor(page.after or "")
    return json(paging.write(page, rows))


@router.get("/{key_id}", response_model=ApiKey)
async def retrieve(key_id: KeyId, deps: Deps, caller: AdminCaller) -> Response:
    """Get a key, without its secret."""
    return json(_known(deps, key_id, caller).key.model_dump_json().encode())


@router.delete("/{key_id}", response_model=Revoked)
async def revoke(key_id: KeyId, request: Request, deps: Deps, caller: AdminCaller) -> Response:
    """Revoke a key: within seconds it opens no api process any more. Doing it again changes nothing."""
    record = _known(deps, key_id, caller)
    if not caller.role.covers(record.key.role):
        raise errors.forbidden(caller.role, record.key.role)
    if record.key.revoked_at is None:
        about = {"name": record.key.name, "project": record.key.project}
        await deps.trail.tell(request, caller, Action.KEY_REVOKE, key_id, whose=record.key.project, **about)
        key = record.key.model_copy(update={"revoked_at": int(deps.clock())})
        await _publish(deps, record.model_copy(update={"key": key}))
        _log.info("%s was revoked", key.id)
    return json(Revoked(id=record.key.id).model_dump_json().encode())


async def sign_again(deps: Dependencies) -> None:
    """Sign the records of keys that another trusted key has signed, so that this one may be taken out of trust."""
    records = deps.view.keyring.signed_by_others(deps.signer.kid)
    try:
        for record in records:
            await _publish(deps, record)
    except LogUnavailable:
        _log.warning("the log is away; keys that another key has signed are signed again at the next start")
    if records:
        _log.warning("%d keys that another key had signed were signed again", len(records))


def _known(deps: Dependencies, key_id: str, caller: Principal) -> KeyRecord:
    record = deps.view.keyring.by_id(key_id)
    if record is None or (record.key.project != caller.project and not caller.is_operator):
        raise errors.no_key_with(key_id)
    return record


async def _publish(deps: Dependencies, record: KeyRecord) -> None:
    await deps.log.send(topics.KEYS.name, record.key.id, deps.signer.key_record(record), headers=[])
    deps.view.keyring.put(record, deps.signer.kid)
