"""The routes of webhook endpoints, as OpenAI's SDKs call them, and of their deliveries.

The replies to `create` and `rotate_secret` have the signing secret; no other reply has it.
"""

import heapq
from collections.abc import Iterable
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from tidemill.api import errors
from tidemill.api.dependencies import Caller, Dependencies, Deps, JsonBody, json
from tidemill.api.openapi import Route
from tidemill.api.requests import paging, reading
from tidemill.api.requests.fields import DeliveryId, EndpointId, OneOf
from tidemill.api.requests.paging import ListPage, PageQuery, Row
from tidemill.api.requests.parts import Query
from tidemill.api.webhooks import CALLBACK, Change
from tidemill.schemas import bounds, ids
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.webhooks.addresses import UrlRefused, checked_url
from tidemill.schemas.webhooks.messages import (
    Attempt,
    Delivery,
    Endpoint,
    EndpointRecord,
    EventType,
    State,
)
from tidemill.schemas.webhooks.table import is_disabled, is_ended

LIMIT_DEFAULT: Final = 20
LIMIT_MAX: Final = 100
NAME_CHARS_MAX: Final = 100
TYPES: Final = tuple(EventType)

router = APIRouter(tags=["webhooks"], route_class=Route)

EventTypes = Annotated[list[Annotated[str, OneOf(TYPES)]], Field(min_length=1, max_length=len(TYPES))]
Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]
Url = Annotated[bounds.Url, Field(min_length=1)]


class EndpointRequest(reading.Body):
    """A new webhook endpoint."""

    event_types: EventTypes
    """The types of events that it gets."""
    name: Name
    """A label of 1 to 100 characters."""
    url: Url
    """Where the events go: `https://…`."""


class EndpointChange(reading.Body):
    """Changes of a webhook endpoint; every change, also an empty one, enables it."""

    event_types: EventTypes | None = None
    """The types of events that it gets, in place of those before."""
    name: Name | None = None
    """A new label."""
    url: Url | None = None
    """A new URL."""


class Rotation(reading.Body):
    """A new signing secret."""

    keep_old_secret_active_for_24_hours: bool = False
    """Whether the old secret stays valid for 24 hours; until then each call has a signature of both."""


class TestRequest(reading.Body):
    """A sample event."""

    event_type: Annotated[str, OneOf(TYPES)]
    """Its type."""


class EndpointsQuery(PageQuery):
    """The query of a list of webhook endpoints."""

    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX), reading.WHOLE] = LIMIT_DEFAULT
    """How many a page has at most."""


class DeliveriesQuery(EndpointsQuery):
    """The query of a list of deliveries."""

    state: Annotated[str, OneOf(tuple(State))] | None = None
    """Only those in this state."""


class EndpointExtras(BaseModel):
    """Fields beyond those of OpenAI. Times are Unix seconds."""

    enabled: bool
    """False after five days of failures, until the next change of the endpoint."""
    failing_since: int | None = None
    """The first failure after the last success; null without one."""
    disabled_at: int | None = None


class ShownEndpoint(Endpoint):
    """A webhook endpoint."""

    tidemill: EndpointExtras


class EndpointWithSecret(ShownEndpoint):
    """A webhook endpoint with its new secret."""

    signing_secret: str


class DeletedEndpoint(BaseModel):
    """A deleted webhook endpoint."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class TestResult(BaseModel):
    """The reply of a receiver to a sample event."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    event_type: EventType
    status_code: int
    success: Literal[True] = True
    """The receiver replied; `status_code` is its status."""
    webhook_endpoint_id: str


class EventTypeList(BaseModel):
    """The types of events."""

    object: Literal["list"] = "list"
    data: list[EventType]


class ShownDelivery(BaseModel):
    """A delivery: an event on its way to an endpoint. Times are Unix seconds."""

    id: str
    object: Literal["webhook_endpoint.delivery"] = "webhook_endpoint.delivery"
    webhook_endpoint_id: str
    url: str | None
    """The `callback_url` of the batch; null for the endpoint's own URL."""
    event_id: str
    """The header `webhook-id` of each of its calls."""
    event_type: EventType
    batch_id: str
    is_test: bool
    state: State
    attempts: int
    created_at: int
    next_attempt_at: int | None
    last_attempt: Attempt | None
    ended_at: int | None


@router.get("/v1/webhook_event_types", response_model=EventTypeList)
async def event_types(caller: Caller) -> Response:
    """List the types of events."""
    del caller
    return json(EventTypeList(data=list(TYPES)))


@router.post(
    "/v1/webhook_endpoints", response_model=EndpointWithSecret,
    responses={409: {"description": "The server has no key to encrypt secrets with."}},
)  # fmt: skip
async def create(
    request: Request,
    deps: Deps,
    caller: Caller,
    body: Annotated[EndpointRequest, Depends(JsonBody(EndpointRequest))],
) -> Response:
    """Create a webhook endpoint. No other answer has its signing secret."""
    with deps.booking(caller.project, stores=False) as booking:
        booking.reserve_webhook_endpoint(len(deps.webhooks.endpoints.of(caller.project)))
        change = Change(name=body.name, url=_url(deps, body.url), event_types=_types(body.event_types))
        endpoint_id = ids.new_endpoint_id()
        await deps.trail.record(request, caller, Action.WEBHOOK_CREATE, endpoint_id, url=body.url)
        record, secret = await deps.webhooks.create(caller.project, endpoint_id, change)
    return json(EndpointWithSecret(**_shown(deps, record).model_dump(), signing_secret=secret))


@router.get("/v1/webhook_endpoints", response_model=ListPage[ShownEndpoint])
async def index(
    deps: Deps, caller: Caller, query: Annotated[EndpointsQuery, Depends(Query(EndpointsQuery))]
) -> Response:
    """List the webhook endpoints, the newest first."""
    # Ids are in the order of creation, so that of a deleted endpoint still has its place.
    if query.after is not None and not ids.is_endpoint_id(query.after):
        raise errors.unknown_cursor(query.after)
    later = (
        record
        for record in deps.webhooks.endpoints.of(caller.project)
        if query.after is None or record.endpoint.id < query.after
    )
    shown = heapq.nlargest(query.limit + 1, later, key=lambda record: record.endpoint.id)
    return json(paging.write(query.page, [_row(_shown(deps, record)) for record in shown]))


@router.get("/v1/webhook_endpoints/{endpoint_id}", response_model=ShownEndpoint)
async def retrieve(deps: Deps, caller: Caller, endpoint_id: EndpointId) -> Response:
    """Get a webhook endpoint, without its secret."""
    return json(_shown(deps, await deps.webhooks.endpoint(caller.project, endpoint_id)))


@router.post("/v1/webhook_endpoints/{endpoint_id}", response_model=ShownEndpoint)
async def update(
    request: Request,
    deps: Deps,
    caller: Caller,
    endpoint_id: EndpointId,
    body: Annotated[EndpointChange, Depends(JsonBody(EndpointChange))],
) -> Response:
    """Change a webhook endpoint; one that was disabled is enabled again."""
    record = await _own(deps, caller.project, endpoint_id)
    known = record.endpoint
    change = Change(
        name=body.name or known.name,
        url=known.url if body.url is None else _url(deps, body.url),
        event_types=known.event_types if body.event_types is None else _types(body.event_types),
    )
    await deps.trail.record(request, caller, Action.WEBHOOK_UPDATE, endpoint_id, url=change.url)
    return json(_shown(deps, await deps.webhooks.update(record, change)))


@router.delete("/v1/webhook_endpoints/{endpoint_id}", response_model=DeletedEndpoint)
async def delete(request: Request, deps: Deps, caller: Caller, endpoint_id: EndpointId) -> Response:
    """Delete a webhook endpoint; events that wait for it are not sent."""
    found = (await deps.webhooks.endpoint(caller.project, endpoint_id)).endpoint.id
    await deps.trail.record(request, caller, Action.WEBHOOK_DELETE, found)
    await deps.webhooks.delete(found)
    return json(DeletedEndpoint(id=found))


@router.post(
    "/v1/webhook_endpoints/{endpoint_id}/rotate_secret", response_model=EndpointWithSecret,
    responses={409: {"description": "The server has no key to encrypt secrets with."}},
)  # fmt: skip
async def rotate_secret(
    request: Request,
    deps: Deps,
    caller: Caller,
    endpoint_id: EndpointId,
    body: Annotated[Rotation, Depends(JsonBody(Rotation))],
) -> Response:
    """Replace the signing secret; no other answer has the new one. The id `callback` means those of batches."""
    keeps_old = body.keep_old_secret_active_for_24_hours
    if endpoint_id == CALLBACK:
        await deps.trail.record(request, caller, Action.WEBHOOK_ROTATE, endpoint_id)
        record, secret = await deps.webhooks.rotate_callback(caller.project, keeps_old=keeps_old)
    else:
        record = await deps.webhooks.endpoint(caller.project, endpoint_id)
        await deps.trail.record(request, caller, Action.WEBHOOK_ROTATE, endpoint_id)
        record, secret = await deps.webhooks.rotate(record, keeps_old=keeps_old)
    return json(EndpointWithSecret(**_shown(deps, record).model_dump(), signing_secret=secret))


@router.post("/v1/webhook_endpoints/{endpoint_id}/test", response_model=TestResult)
async def test(
    deps: Deps,
    caller: Caller,
    endpoint_id: EndpointId,
    body: Annotated[TestRequest, Depends(JsonBody(TestRequest))],
) -> Response:
    """Send a sample event once, and wait for the receiver's reply; a receiver that gives none is a 400."""
    record = await _own(deps, caller.project, endpoint_id)
    kind = EventType(body.event_type)
    found = await deps.webhooks.test(record, kind)
    if found is None or found.last is None:
        raise errors.unavailable("result of the test")
    if found.last.status_code is None:
        raise errors.invalid(f"The receiver gave no reply: {found.last.error}.", code="webhook_test_failed")
    return json(TestResult(event_type=kind, status_code=found.last.status_code, webhook_endpoint_id=endpoint_id))


@router.get("/v1/webhook_endpoints/{endpoint_id}/deliveries", response_model=ListPage[ShownDelivery])
async def deliveries(
    deps: Deps,
    caller: Caller,
    endpoint_id: EndpointId,
    query: Annotated[DeliveriesQuery, Depends(Query(DeliveriesQuery))],
) -> Response:
    """List the deliveries to a webhook endpoint, the newest first: all that wait, and the last 100 that ended."""
    record = await deps.webhooks.endpoint(caller.project, endpoint_id)
    after = None if query.after is None else await deps.webhooks.place(record.endpoint.id, query.after)
    state = None if query.state is None else State(query.state)
    shown = deps.webhooks.deliveries.page(record.endpoint.id, state, after, query.limit + 1)
    return json(paging.write(query.page, [_row(_delivery(each)) for each in shown]))


@router.post(
    "/v1/webhook_endpoints/{endpoint_id}/deliveries/{delivery_id}/resend", response_model=ShownDelivery,
    responses={409: {"description": "The delivery has not ended."}},
)  # fmt: skip
async def resend(deps: Deps, caller: Caller, endpoint_id: EndpointId, delivery_id: DeliveryId) -> Response:
    """Send an ended delivery again, with the same `webhook-id`, for up to 72 hours."""
    record = await deps.webhooks.endpoint(caller.project, endpoint_id)
    found = await deps.webhooks.delivery(record.endpoint.id, delivery_id)
    if not is_ended(found):
        raise errors.conflict("The delivery has not ended: it is attempted again by itself.")
    await deps.webhooks.resend(found)
    return json(_delivery(found))


async def _own(deps: Dependencies, project: str, endpoint_id: str) -> EndpointRecord:
    """An endpoint with a URL of its own.

    Raises:
        ApiError: 404, there is none; 400, it stands for callbacks.
    """
    record = await deps.webhooks.endpoint(project, endpoint_id)
    if record.is_callback:
        raise errors.invalid("Callbacks have no URL and no event types of their own: each batch names its URL.")
    return record


def _url(deps: Dependencies, text: str) -> str:
    try:
        return checked_url(text, deps.webhooks.allowed)
    except UrlRefused as error:
        raise errors.invalid_param("url", f"{error}.") from error


def _types(names: Iterable[str]) -> tuple[EventType, ...]:
    """The types without repetitions."""
    return tuple(dict.fromkeys(map(EventType, names)))


def _shown(deps: Dependencies, record: EndpointRecord) -> ShownEndpoint:
    health = deps.webhooks.deliveries.health(record.endpoint.id)
    is_off = is_disabled(record, health)
    is_known = health is not None and (health.disabled_at is None or is_off)
    extras = EndpointExtras(
        enabled=not is_off,
        failing_since=health.failing_since if health is not None and is_known else None,
        disabled_at=health.disabled_at if health is not None and is_off else None,
    )
    return ShownEndpoint(**record.endpoint.model_dump(), tidemill=extras)


def as_json(deps: Dependencies, project: str, endpoint_id: str) -> bytes | None:
    """A webhook endpoint as the API shows it; None if the project has no such endpoint."""
    record = deps.webhooks.endpoints.get(endpoint_id)
    if record is None or record.project != project:
        return None
    return _shown(deps, record).model_dump_json().encode()


def _delivery(found: Delivery) -> ShownDelivery:
    return ShownDelivery(
        id=found.id, webhook_endpoint_id=found.endpoint_id, url=found.url,
        event_id=found.event.id, event_type=found.event.type,
        batch_id=found.event.batch_id, is_test=found.is_test, state=found.state, attempts=found.attempts,
        created_at=found.created_at, next_attempt_at=found.next_at, last_attempt=found.last,
        ended_at=found.ended_at,
    )  # fmt: skip


def _row(shown: ShownEndpoint | ShownDelivery) -> Row:
    return Row(id=shown.id, body=shown.model_dump_json().encode())
