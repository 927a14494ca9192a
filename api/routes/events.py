"""The route of server-sent events: the changes of a project's objects as they happen."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Final

import orjson
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import AfterValidator, Field
from starlette.types import Receive, Scope, Send

from tidemill.api import errors
from tidemill.api.access import sessions
from tidemill.api.access.auth import Principal
from tidemill.api.changes import LOAD, Key, ProjectChanges
from tidemill.api.dependencies import Caller, Dependencies, Deps
from tidemill.api.http.concurrency_gate import has_room
from tidemill.api.openapi import Route
from tidemill.api.requests import faults, reading
from tidemill.api.requests.parts import Headers, Query
from tidemill.api.routes import webhooks
from tidemill.schemas.resources.access import Role
from tidemill.schemas.resources.error import ApiError

CHECK_SECONDS: Final = 4.0
"""Time between two checks of the key of a quiet stream."""
QUIET_SECONDS: Final = 15.0
"""Between two comments that keep a quiet connection open."""
LIFE_SECONDS: Final = 3_600.0
"""A stream ends after this time; its client comes back with a renewed session."""
RETRY_MS: Final = 2_000
"""How long a client waits before it comes back."""
ROUND_BYTES_MAX: Final = 1 << 20
"""Bytes that a stream sends at once; with more, its client reads everything anew."""
SHARED_BYTES_MAX: Final = 8_192
"""Bytes of an event that the streams of a project share; each makes a larger one itself: little is kept."""
SHARE_OF_CONNECTIONS: Final = 2
"""Streams may take half of `connections_max`; projects share it as they share a `ConcurrencyGate`."""

Render = Callable[[Dependencies, str, str], bytes | None]
RENDER: Final[Mapping[str, Render]] = {
    "batch": lambda deps, project, batch_id: deps.view.batch(project, batch_id),
    "file": lambda deps, project, file_id: (
        None if (found := deps.view.file(project, file_id)) is None else found.file.model_dump_json().encode()
    ),
    "webhook_endpoint": webhooks.as_json,
    "catalog": lambda *_: b'{"object":"catalog"}',
    LOAD: lambda deps, *_: deps.loads.event(),
}
"""The types of events, and the state of the object of each; None if it is deleted."""
USUAL: Final = frozenset(RENDER) - {LOAD}
"""The types of a stream that names none."""
_TYPE: Final = f"({'|'.join(RENDER)})"
_EVENT_ID: Final = r"^[0-9a-f]{8}-[0-9]{1,15}$"

router = APIRouter(tags=["events"], route_class=Route)


def _check_types(text: str) -> str:
    if not set(text.split(",")) <= set(RENDER):
        raise faults.none_of(tuple(RENDER))
    return text


class EventsQuery(reading.Parameters):
    """The query of a stream of events."""

    types: (
        Annotated[
            str,
            Field(max_length=64, json_schema_extra={"pattern": f"^{_TYPE}(,{_TYPE}){{0,4}}$"}),
            AfterValidator(_check_types),
        ]
        | None
    ) = None
    """Types of objects, separated by commas: `batch`, `file`, `webhook_endpoint`, `catalog`, `load`; by default
    all but `load`, the load of servers at most once a second, which needs an operator's key."""


class LastEvent(reading.Parameters):
    """The header of a client that comes back."""

    last_event_id: Annotated[str | None, Field(alias="Last-Event-ID", max_length=24, pattern=_EVENT_ID)] = None
    """The id of the last event that it got."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A stream of one client."""

    deps: Dependencies
    project: str
    types: frozenset[str]
    is_valid: Callable[[], bool]
    """Whether the key or session of the client is still valid."""

    async def frames(self, last: str | None) -> AsyncIterator[bytes]:
        """The bytes to send; they end with the key or session, or with the process."""
        feed, ends_at = self.deps.events, time.monotonic() + LIFE_SECONDS
        with feed.stream(self.project, wants_load=LOAD in self.types) as changes:
            number = self._resumed(changes, last)
            if number is None:
                number = changes.number
                yield self._reset(changes)
            else:
                yield format_sse_event(retry=RETRY_MS)
            sent_at = time.monotonic()
            while not feed.is_closed and time.monotonic() < ends_at:
                woken = changes.woken
                if changes.number == number:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(CHECK_SECONDS):
                            await woken.wait()
                if not self.is_valid():
                    return
                if changes.number != number:
                    sent, number = self._changed(changes, number), changes.number
                    if sent:
                        yield sent
                        sent_at = time.monotonic()
                    await self._pause(changes)
                if time.monotonic() >= sent_at + QUIET_SECONDS:
                    yield KEEPALIVE_COMMENT
                    sent_at = time.monotonic()

    async def _pause(self, changes: ProjectChanges) -> None:
        """If changes are due, wait until the feed next wakes all streams of the project."""
        if changes.is_due:
            await changes.woken.wait()

    def _resumed(self, changes: ProjectChanges, last: str | None) -> int | None:
        """The number of the change that the client saw last; None if the feed does not know all since then."""
        epoch, _, number = (last or "").partition("-")
        if epoch != changes.epoch or not changes.lost <= int(number) <= changes.number:
            return None
        return int(number)

    def _changed(self, changes: ProjectChanges, number: int) -> bytes:
        """The events since a change; a reset if there are too many."""
        if (found := changes.since(number)) is None:
            return self._reset(changes)
        frames, size = [], 0
        for key, changed in found:
            if key[0] in self.types:
                frames.append(self._frame(changes, key, changed))
                size += len(frames[-1])
                if size > ROUND_BYTES_MAX:
                    return self._reset(changes)
        return b"".join(frames)

    def _frame(self, changes: ProjectChanges, key: Key, number: int) -> bytes:
        if (known := changes.frames.get(key)) is not None:
            return known
        kind, object_id = key
        body = RENDER[kind](self.deps, self.project, object_id)
        if body is None:
            body = orjson.dumps({"id": object_id, "object": kind, "deleted": True})
        event_id = f"{changes.epoch}-{number}"
        frame = format_sse_event(event=kind, data_str=body.decode(), id=event_id)
        if len(frame) <= SHARED_BYTES_MAX:
            changes.frames[key] = frame
        return frame

    def _reset(self, changes: ProjectChanges) -> bytes:
        event_id = f"{changes.epoch}-{changes.number}"
        return format_sse_event(event="reset", data_str='{"object":"reset"}', id=event_id, retry=RETRY_MS)


class EventResponse(StreamingResponse):
    """A stream that counts as one of its project while it is open.

    FastAPI's own `EventSourceResponse` runs a task and a queue for each stream, and encodes each event for each.
    """

    media_type = "text/event-stream"

    def __init__(
        self, frames: AsyncIterator[bytes], status_code: int = 200, *, open_streams: Counter[str], project: str
    ) -> None:
        # A proxy that gathers answers would hold events back.
        super().__init__(frames, status_code, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._open = open_streams
        self._project = project
        self._open[project] += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until either side ends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._open[self._project] -= 1
            if not self._open[self._project]:
                del self._open[self._project]


@router.get(
    "/v1/events", response_class=EventResponse,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        429: {"description": "Too many streams are open, or the key asks too often."},
    },
)  # fmt: skip
async def stream(
    request: Request,
    deps: Deps,
    caller: Caller,
    query: Annotated[EventsQuery, Depends(Query(EventsQuery))],
    header: Annotated[LastEvent, Depends(Headers(LastEvent))],
) -> Response:
    """Stream the changes of the project's objects as server-sent events."""
    most, held = deps.settings.connections.connections_max // SHARE_OF_CONNECTIONS, deps.events.open_streams
    if not has_room(held, caller.project, most):
        raise errors.too_many_streams(caller.project) if held[caller.project] else errors.no_stream_left()
    types = frozenset(query.types.split(",")) if query.types else USUAL
    if LOAD in types:
        caller.require(Role.OPERATOR)
    found = Stream(deps=deps, project=caller.project, types=types, is_valid=_check(request, deps, caller))
    return EventResponse(
        found.frames(header.last_event_id), open_streams=deps.events.open_streams, project=caller.project
    )


def _check(request: Request, deps: Dependencies, caller: Principal) -> Callable[[], bool]:
    cookie = sessions.cookie(request) if caller.session_id else None

    def is_valid() -> bool:
        try:
            if cookie is not None:
                deps.access.sessions.find(cookie, is_whole=True)
            else:
                deps.access.keys.named(caller.key_id, is_whole=True)
        except ApiError:
            return False
        return True

    return is_valid
