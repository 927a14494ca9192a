"""What the routes reach the world through, and how a route gets at it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, TypeVar

from fastapi import Depends, Request, Response

from tidemill.api import errors
from tidemill.api.access import rate_limits, trail
from tidemill.api.access.auth import Keys, Principal
from tidemill.api.access.rate_limits import Rates
from tidemill.api.access.trail import Refusals, Trail
from tidemill.api.http.concurrency_gate import ConcurrencyGate, RequestPacer
from tidemill.api.view.quotas import Booking
from tidemill.api.view.result_lines import Lines
from tidemill.api.view.view import View
from tidemill.configuration.settings import Settings
from tidemill.schemas.ports import Clock, History, Sender, Store
from tidemill.schemas.resources.access import Role
from tidemill.schemas.resources.error import ApiError
from tidemill.schemas.signing import Signer
from tidemill.sealing.vault import Vault
from tidemill.storage.disk_space import DiskSpace

STORE_SECONDS_MAX = 30.0
"""How long the store may take for one step before a request is given up."""
UPLOADS_AT_ONCE_MAX = 32
"""Further uploads wait, unread: each one holds some MiB."""
ESTIMATES_AT_ONCE_MAX = 2
"""Each one parses a whole input."""
REPLAYS_AT_ONCE_MAX = 4
"""Each one reads a stretch of the log and writes a file."""
CREATES_AT_ONCE_MAX = 8
"""Each one waits for the log; further ones wait their turn, so that those of another project overtake them. Some
hundred a second need no more."""
SUMS_AT_ONCE_MAX = 2
"""Each one goes through the ledger of a project, or of all."""
BODY_BYTES_MAX = 1 << 20
"""The largest JSON body."""
SMALL_BODY_BYTES = 64 * 1024
"""A larger one is read on in its turn: a thousand connections may send a MiB each, as slowly as they like."""
LARGE_BODIES_AT_ONCE_MAX = 32
SAFE_METHODS = frozenset({"GET", "HEAD"})
"""What a key with the role `read` may use."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Dependencies:
    """Everything that an app is composed of."""

    settings: Settings
    keys: Keys
    signer: Signer
    """Signs keys and tokens."""
    log: Sender
    history: History
    store: Store
    space: DiskSpace = field(default_factory=lambda: DiskSpace(0, {}))
    """What is free for more."""
    view: View
    clock: Clock
    is_ready: Callable[[], bool]
    """Whether the view holds all that the log held when this process started."""
    vault: Vault | None = None
    """The keys of batches whose lines are sealed."""
    estimates: ConcurrencyGate = field(default_factory=lambda: ConcurrencyGate("estimates", ESTIMATES_AT_ONCE_MAX))
    uploads: ConcurrencyGate = field(default_factory=lambda: ConcurrencyGate("uploads", UPLOADS_AT_ONCE_MAX))
    replays: ConcurrencyGate = field(default_factory=lambda: ConcurrencyGate("replays", REPLAYS_AT_ONCE_MAX))
    creates: ConcurrencyGate = field(default_factory=lambda: ConcurrencyGate("new batches", CREATES_AT_ONCE_MAX))
    bodies: ConcurrencyGate = field(
        default_factory=lambda: ConcurrencyGate("large requests", LARGE_BODIES_AT_ONCE_MAX)
    )
    sums: ConcurrencyGate = field(default_factory=lambda: ConcurrencyGate("sums of usage", SUMS_AT_ONCE_MAX))
    pacer: RequestPacer = field(default_factory=RequestPacer)
    refusals: Refusals = field(default_factory=lambda: Refusals(time.monotonic))
    rates: Rates = field(default_factory=lambda: Rates(time.monotonic))

    def booking(self, project: str) -> Booking:
        """Room for what a request brings to a project."""
        return Booking(self.view.loads, self.settings.limits_of(project), project, self.space)

    @cached_property
    def trail(self) -> Trail:
        """Records what is done."""
        return Trail(self.log, self.clock)

    @cached_property
    def lines(self) -> Lines:
        """Reads the finished lines of batches."""
        return Lines(self.store)


async def current(request: Request) -> Dependencies:
    """The dependencies of the app that answers."""
    found = request.app.state.dependencies
    assert isinstance(found, Dependencies)
    return found


async def principal(request: Request) -> Principal:
    """Whom the request stands for, if its key may do what the method says.

    Raises:
        ApiError: 401 without a valid key, 403 where its role is too small, 429 where it asks too often; 503 while
            the view is not yet whole.
    """
    return await _able(request, Role.READ if request.method in SAFE_METHODS else Role.WRITE)


async def reader(request: Request) -> Principal:
    """As `principal`, for what changes nothing whatever its method."""
    return await _able(request, Role.READ)


async def administrator(request: Request) -> Principal:
    """As `principal`, for what only an admin of the project may do, or an operator."""
    return await _able(request, Role.ADMIN)


async def _able(request: Request, needed: Role) -> Principal:
    deps = await current(request)
    is_ready = deps.is_ready()
    caller = _known(request, deps, is_whole=is_ready)
    request.state.project, request.state.key_id = caller.project, caller.key_id
    rate_limits.charge(request, deps.rates, caller.key_id, deps.settings.limits_of(caller.project))
    if not caller.role.covers(needed):
        raise errors.forbidden(caller.role, needed)
    if not is_ready:
        raise errors.unavailable("server's view of the log")
    await deps.pacer.turn(caller.project)
    return caller


def _known(request: Request, deps: Dependencies, *, is_whole: bool) -> Principal:
    try:
        return deps.keys.principal(_authorization(request), is_whole=is_whole)
    except ApiError as error:
        if error.body.code != errors.INVALID_KEY:
            raise
        if seconds := deps.refusals.count(trail.address(request)):
            raise errors.refused_too_often(seconds) from error
        deps.trail.refused(request)
        raise


def _authorization(request: Request) -> str | None:
    """The key, in the header of OpenAI's clients or in that of Azure's."""
    if (given := request.headers.get("authorization")) is not None:
        return given
    azure = request.headers.get("api-key")
    return None if azure is None else f"Bearer {azure}"


Deps = Annotated[Dependencies, Depends(current)]
Caller = Annotated[Principal, Depends(principal)]
ReadingCaller = Annotated[Principal, Depends(reader)]
AdminCaller = Annotated[Principal, Depends(administrator)]


def json(content: bytes) -> Response:
    """A successful answer."""
    return Response(content, media_type="application/json")


async def body(request: Request) -> bytes:
    """The body of a request that is not an upload.

    Raises:
        ApiError: 413, it is above `BODY_BYTES_MAX`; 429 or 503, it is large, and too many such are being read.
    """
    chunks: list[bytes] = []
    size = 0
    async with AsyncExitStack() as stack:
        async for chunk in request.stream():
            is_large = size > SMALL_BODY_BYTES
            size += len(chunk)
            if size > BODY_BYTES_MAX:
                raise errors.body_too_large(BODY_BYTES_MAX)
            chunks.append(chunk)
            if size > SMALL_BODY_BYTES and not is_large:
                deps = await current(request)
                await stack.enter_async_context(deps.bodies.turn(request.state.project))
    return b"".join(chunks)


async def from_store(step: Awaitable[T]) -> T:
    """Wait for one step of the store.

    Raises:
        ApiError: 503 or 507, it failed, or took longer than `STORE_SECONDS_MAX`.
        NotFound: As the step says.
    """
    try:
        async with asyncio.timeout(STORE_SECONDS_MAX):
            return await step
    except OSError as error:
        raise errors.from_store(error) from error


async def chunks_from_store(reading: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What the store reads, each chunk waited for within bounds."""
    while chunk := await from_store(anext(reading, b"")):
        yield chunk
