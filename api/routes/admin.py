"""The routes of keys: an admin's reach the keys of its project, an operator's those of all."""

import logging
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from tidemill.api import errors, responses
from tidemill.api.access.auth import Principal
from tidemill.api.dependencies import Administering, Dependencies, Opened, body, json
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
async def create(request: Request, doors: Opened, asking: Administering) -> Response:
    """Make a key. Its secret is in this answer and nowhere else; it opens every api process within seconds."""
    wish = reading.body(KeyWish, await body(request), doors.settings)
    role = Role(wish.role)
    if wish.project not in {None, asking.project} and not asking.is_operator:
        raise errors.forbidden(asking.role, Role.OPERATOR)
    if not asking.role.covers(role):
        raise errors.forbidden(asking.role, role)
    project, now, secret = wish.project or asking.project, int(doors.clock()), access.new_secret()
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
    with doors.booking(project) as booking:
        booking.key()
        await doors.trail.tell(request, asking, Action.KEY_CREATE, key.id, whose=project, **about)
        await _publish(doors, KeyRecord(key=key, sha256=access.digest(secret)))
    _log.info("%s was made, a key of the project %s with the role %s", key.id, key.project, key.role)
    return json(NewKey(**key.model_dump(), secret=secret).model_dump_json().encode())


@router.get("", response_model=KeyPage, openapi_extra=_INDEX)
async def index(request: Request, doors: Opened, asking: Administering) -> Response:
    """List keys, also those that are revoked: of the project; for an operator of all, or of the one it names."""
    wanted = reading.query(KeysQuery, request.query_params.multi_items())
    page = wanted.page
    project = wanted.project or (None if asking.is_operator else asking.project)
    if project != asking.project and not asking.is_operator:
        raise errors.forbidden(asking.role, Role.OPERATOR)
    rows = doors.view.keyring.rows(project, page.after, page.limit + 1)
    if rows is None:
        raise errors.unknown_cursor(page.after or "")
    return json(paging.write(page, rows))


@router.get("/{key_id}", response_model=ApiKey)
async def retrieve(key_id: KeyId, doors: Opened, asking: Administering) -> Response:
    """Get a key, without its secret."""
    return json(_known(doors, key_id, asking).key.model_dump_json().encode())


@router.delete("/{key_id}", response_model=Revoked)
async def revoke(key_id: KeyId, request: Request, doors: Opened, asking: Administering) -> Response:
    """Revoke a key: within seconds it opens no api process any more. Doing it again changes nothing."""
    record = _known(doors, key_id, asking)
    if not asking.role.covers(record.key.role):
        raise errors.forbidden(asking.role, record.key.role)
    if record.key.revoked_at is None:
        about = {"name": record.key.name, "project": record.key.project}
        await doors.trail.tell(request, asking, Action.KEY_REVOKE, key_id, whose=record.key.project, **about)
        key = record.key.model_copy(update={"revoked_at": int(doors.clock())})
        await _publish(doors, record.model_copy(update={"key": key}))
        _log.info("%s was revoked", key.id)
    return json(Revoked(id=record.key.id).model_dump_json().encode())


async def sign_again(doors: Dependencies) -> None:
    """Sign the records of keys that another trusted key has signed, so that this one may be taken out of trust."""
    records = doors.view.keyring.signed_by_others(doors.signer.kid)
    try:
        for record in records:
            await _publish(doors, record)
    except LogUnavailable:
        _log.warning("the log is away; keys that another key has signed are signed again at the next start")
    if records:
        _log.warning("%d keys that another key had signed were signed again", len(records))


def _known(doors: Dependencies, key_id: str, asking: Principal) -> KeyRecord:
    record = doors.view.keyring.by_id(key_id)
    if record is None or (record.key.project != asking.project and not asking.is_operator):
        raise errors.no_key_with(key_id)
    return record


async def _publish(doors: Dependencies, record: KeyRecord) -> None:
    await doors.log.send(topics.KEYS.name, record.key.id, doors.signer.key_record(record), headers=[])
    doors.view.keyring.put(record, doors.signer.kid)
