"""Dependencies injected into the routes: the parts of the app, the caller, and the body of the request."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar

from fastapi import Depends, Request, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from tidemill.api import errors
from tidemill.api.access import rate_limits, sessions, trail
from tidemill.api.access.auth import Keys, Principal
from tidemill.api.access.people import People
from tidemill.api.access.rate_limits import Rates
from tidemill.api.access.sessions import SAFE_METHODS, Sessions
from tidemill.api.access.trail import Refusals, Trail
from tidemill.api.changes import ChangeFeed
from tidemill.api.http.concurrency_gate import ConcurrencyGate, RequestPacer
from tidemill.api.publisher import IntakeProducer, Publisher
from tidemill.api.requests import reading
from tidemill.api.requests.parts import FULL, UNUSABLE, Part, schema_of
from tidemill.api.requests.reading import Body
from tidemill.api.servers.load import Loads
from tidemill.api.view.quotas import Booking
from tidemill.api.view.result_lines import Lines, damaged
from tidemill.api.view.view import View
from tidemill.api.webhooks import Webhooks
from tidemill.configuration.servers import Serving
from tidemill.configuration.settings import Settings
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.history import LogHistory
from tidemill.runtime.threads import run_half_time
from tidemill.schemas.log.messages import FileRecord
from tidemill.schemas.log.signing import Signer
from tidemill.schemas.ports import Clock, Sender, Store
from tidemill.schemas.resources.access import Role
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.resources.error import ApiError
from tidemill.sealing.vault import Vault
from tidemill.storage.buckets import Buckets
from tidemill.storage.disk_space import DiskSpace
from tidemill.storage.owner import StoreOwner

if TYPE_CHECKING:
    from tidemill.api.access.provider import Provider

STORE_SECONDS_MAX = 30.0
"""How long the store may take for one step before the request fails."""
UPLOADS_AT_ONCE_MAX = 32
"""Further uploads wait unread, since each one holds some MiB."""
REPLAYS_AT_ONCE_MAX = 4
"""Each one reads a range of the log and writes a file."""
BODY_BYTES_MAX = 1 << 20
"""The largest JSON body, unless a route allows more; a larger one is parsed in a thread."""
SMALL_BODY_BYTES = 64 * 1024
"""The rest of a larger body passes a gate, since a thousand connections may each send a MiB slowly."""

T = TypeVar("T")
B = TypeVar("B", bound=Body)


class Gates:
    """Bounds of concurrent work, shared among projects."""

    def __init__(self) -> None:
        self.uploads = ConcurrencyGate("uploads", UPLOADS_AT_ONCE_MAX)
        self.replays = ConcurrencyGate("replays", REPLAYS_AT_ONCE_MAX)
        # Each parses a whole input.
        self.estimates = ConcurrencyGate("estimates", 2)
        # Each waits for the log; others wait here, where requests of other projects overtake them. Some hundred a
        # second need no more.
        self.creates = ConcurrencyGate("new batches", 8)
        # Each waits for the server of a bucket.
        self.buckets = ConcurrencyGate("requests to buckets", 16)
        # Each converts a file, and holds some ten MiB.
        self.tables = ConcurrencyGate("downloads of tables", 2)
        self.bodies = ConcurrencyGate("large requests", 32)
        # Each parses some MiB of results.
        self.searches = ConcurrencyGate("searches", 2)
        self.requeues = ConcurrencyGate("requests to requeue dead letters", 1)
        # Each reads the ledger of a project, or of all.
        self.sums = ConcurrencyGate("sums of usage", 2)
        # Each waits for the OpenID provider.
        self.sign_ins = ConcurrencyGate("sign-ins", 16, seconds_max=5.0)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Known keys and sessions, and their rate limits."""

    keys: Keys
    sessions: Sessions
    provider: "Provider | None" = None
    """The OpenID provider for sign-ins; None if the settings have none."""
    people: People | None = None
    refusals: Refusals = field(default_factory=lambda: Refusals(time.monotonic))
    rates: Rates = field(default_factory=lambda: Rates(time.monotonic))
    pacer: RequestPacer = field(default_factory=RequestPacer)


@dataclass(frozen=True)
class Reading:
    """How far this process has read the log."""

    is_ready: Callable[[], bool]
    """Whether the view has caught up with the log as it was when this process started."""
    catch_up: Callable[..., Awaitable[None]]
    """Called with topics of the view: waits until it has folded all that the log has of them now. Raises
    `LogUnavailable` if it does not get there in some seconds."""
    owner: StoreOwner
    """Compares the log with the store."""
    fault: Callable[[], str | None] = lambda: None
    """Why the view is not current: it has not caught up yet, or no longer follows the log; None if it is."""
    silent_since: Callable[[str], float | None] = lambda _: None
    """Since when a topic has not been read, in Unix seconds; None if it is read."""


@dataclass(frozen=True, kw_only=True)
class Dependencies:
    """The dependencies of an app."""

    settings: Settings
    catalog: Catalog
    """The present servers and models."""
    clock: Clock
    reading: Reading
    access: Access
    gates: Gates = field(default_factory=Gates)
    view: View
    webhooks: Webhooks
    loads: Loads
    log: Sender
    history: LogHistory
    signer: Signer
    """Signs keys and tokens."""
    store: Store
    space: DiskSpace = field(default_factory=lambda: DiskSpace(0, {}))
    """Free space of the disks."""
    vault: Vault
    """Encryption keys of batches."""

    @property
    def events(self) -> ChangeFeed:
        """The changes of objects, for streams of events."""
        return self.view.feed

    @property
    def serving(self) -> Serving:
        """The present servers and models that can be used."""
        return self.catalog.contents.serving

    @property
    def owner(self) -> StoreOwner:
        """Compares the log with the store."""
        return self.reading.owner

    def booking(self, project: str, *, stores: bool = True) -> Booking:
        """Reserves room for what a request creates; raises 503 if that `stores` and the store is not the log's."""
        if stores and (fault := self.owner.fault) is not None and fault.is_foreign:
            raise errors.foreign_store(fault.text)
        return Booking(self.view.quotas, self.settings.limits_of(project), project, self.space)

    @cached_property
    def buckets(self) -> Buckets:
        """The buckets of users."""
        return Buckets(self.settings.buckets)

    @cached_property
    def publisher(self) -> Publisher:
        """Writes records to the log."""
        return Publisher(self.log, self.view, self.signer)

    @cached_property
    def intake(self) -> IntakeProducer:
        """Produces the lines of open batches."""
        return IntakeProducer(self.log, self.signer)

    @cached_property
    def trail(self) -> Trail:
        """Writes the audit trail."""
        return Trail(self.log, self.clock)

    @cached_property
    def lines(self) -> Lines:
        """Reads finished lines of batches."""
        return Lines(self.store)


async def current(request: Request) -> Dependencies:
    """The dependencies of the app that answers."""
    found = request.app.state.dependencies
    assert isinstance(found, Dependencies)
    return found


async def current_view(request: Request) -> View:
    """The view of the app that answers."""
    return (await current(request)).view


async def current_settings(request: Request) -> Settings:
    """The settings of the app that answers."""
    return (await current(request)).settings


class Authentication(Part, HTTPBearer):
    """Finds the caller of a request by its key, or by the session of the dashboard; it must cover a role.

    By default the role is `read` for GET and HEAD, and `write` for other methods.
    """

    errors: ClassVar[Mapping[int, str]] = {
        401: "There is no key, or it is not known.",
        403: "The key may not do this.",
        429: "The key asks too often, or a limit of the project is reached.",
    }

    def __init__(self, role: Role | None = None) -> None:
        # FastAPI describes the base class in the OpenAPI document.
        super().__init__(scheme_name="key", auto_error=False)
        self._role = role

    async def __call__(self, request: Request) -> Principal:  # type: ignore[override]
        """Find the caller.

        Raises:
            ApiError: 401, there is no valid key; 403, its role does not cover the request; 429, it asks too often;
                503, the view has not caught up with the log.
        """
        deps = await current(request)
        is_ready = deps.reading.is_ready()
        secret, renewed = _secret(request), None
        if secret is None and (cookie := sessions.cookie(request)) is not None:
            caller, renewed = _of_session(request, deps, cookie, is_whole=is_ready)
        else:
            with _counting(request, deps, errors.INVALID_KEY):
                caller = deps.access.keys.principal(secret, is_whole=is_ready)
        request.state.project, request.state.key_id = caller.project, caller.key_id
        rate_limits.charge(request, deps.access.rates, caller.key_id, deps.settings.limits_of(caller.project))
        if renewed is not None:
            request.state.headers = {**request.state.headers, "set-cookie": renewed}
        caller.require(self._role or (Role.READ if request.method in SAFE_METHODS else Role.WRITE))
        if not is_ready:
            raise errors.unavailable("server's view of the log")
        await deps.access.pacer.turn(caller.project)
        return caller


def _secret(request: Request) -> str | None:
    """The key, from the header of OpenAI's clients, Azure's or Anthropic's."""
    if (authorization := request.headers.get("authorization")) is None:
        return request.headers.get("api-key") or request.headers.get("x-api-key")
    scheme, _, secret = authorization.partition(" ")
    return secret if scheme.lower() == "bearer" else None


def _of_session(
    request: Request, deps: Dependencies, cookie: str, *, is_whole: bool
) -> tuple[Principal, str | None]:
    """The caller that a session stands for, and the header of a new cookie if this one is old.

    Raises:
        ApiError: See `sessions.check_origin` and `Sessions.find`; 429, too many forged cookies of the address.
    """
    sessions.check_origin(request)
    with _counting(request, deps, errors.INVALID_SESSION):
        found = deps.access.sessions.find(cookie, is_whole=is_whole)
    renewed = deps.access.sessions.renewed(found)
    header = None if renewed is None else deps.access.sessions.header(request, renewed)
    return found.caller, header


@contextmanager
def _counting(request: Request, deps: Dependencies, code: str) -> Iterator[None]:
    """Count and record an error with this code as a refusal, which is a 429 if its address has too many."""
    try:
        yield
    except ApiError as error:
        if error.body.code != code:
            raise
        if seconds := deps.access.refusals.count(trail.address(request)):
            raise errors.refused_too_often(seconds) from error
        deps.trail.record_soon(request, Action.KEY_REFUSE)
        raise


Deps = Annotated[Dependencies, Depends(current)]
ViewDep = Annotated[View, Depends(current_view)]
SettingsDep = Annotated[Settings, Depends(current_settings)]
Caller = Annotated[Principal, Depends(Authentication())]
"""The caller; its role covers the method."""
ReadingCaller = Annotated[Principal, Depends(Authentication(Role.READ))]
"""The caller, of any role; the route checks the role if the request changes something."""
AdminCaller = Annotated[Principal, Depends(Authentication(Role.ADMIN))]
"""The caller: an admin of the project, or an operator."""

OperatorCaller = Annotated[Principal, Depends(Authentication(Role.OPERATOR))]
"""The caller: an operator."""


def json(content: bytes | BaseModel) -> Response:
    """A JSON response with status 200."""
    encoded = content.model_dump_json().encode() if isinstance(content, BaseModel) else content
    return Response(encoded, media_type="application/json")


class JsonBody(Part, Generic[B]):
    """The JSON body, as a model. Routes depend on the caller first, so the api reads bodies of known keys only."""

    errors: ClassVar[Mapping[int, str]] = {**UNUSABLE, 413: "The body is too large."}

    def __init__(self, model: type[B], *, bytes_max: int = BODY_BYTES_MAX) -> None:
        self._model = model
        self._bytes_max = bytes_max

    async def __call__(self, request: Request) -> B:
        """Read it.

        Raises:
            ApiError: 400 with the field's name; 413, too large; 429 or 503, too many large ones are being read.
        """
        deps = await current(request)
        async with AsyncExitStack() as stack:
            content = await _content(request, deps.gates.bodies, self._bytes_max, stack)
            if len(content) <= BODY_BYTES_MAX:
                return reading.body(self._model, content, deps.settings)
            return await run_half_time(reading.body, self._model, content, deps.settings)

    def described(self) -> dict[str, Any]:
        """The schema of the model."""
        is_required = any(field.is_required() for field in self._model.model_fields.values())
        content = {"application/json": {"schema": schema_of(self._model)}}
        return {"requestBody": {"required": is_required, "content": content}}


class StoringBody(JsonBody[B]):
    """The JSON body of a request that stores something."""

    errors: ClassVar[Mapping[int, str]] = {**JsonBody.errors, **FULL}


async def _content(request: Request, large: ConcurrencyGate, bytes_max: int, stack: AsyncExitStack) -> bytes:
    """The body; a large one has a place at the gate until the stack ends."""
    body = bytearray()
    async for chunk in request.stream():
        is_large = len(body) > SMALL_BODY_BYTES
        if len(body) + len(chunk) > bytes_max:
            raise errors.body_too_large(bytes_max)
        body += chunk
        if len(body) > SMALL_BODY_BYTES and not is_large:
            await stack.enter_async_context(large.turn(request.state.project))
    return bytes(body)


async def from_store(step: Awaitable[T]) -> T:
    """Wait for one step of the store, within `STORE_SECONDS_MAX`.

    Raises:
        ApiError: 503 or 507, it failed, or took longer than `STORE_SECONDS_MAX`.
        NotFound: As the step says.
    """
    try:
        async with asyncio.timeout(STORE_SECONDS_MAX):
            return await step
    except OSError as error:
        raise errors.from_store(error) from error


async def chunks_from_store(reading: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The chunks that the store reads; each one must come within `STORE_SECONDS_MAX`."""
    async with aclosing(reading):
        while chunk := await from_store(anext(reading, b"")):
            yield chunk


async def file_from_store(
    deps: Dependencies, record: FileRecord, start: int = 0, end: int | None = None
) -> AsyncGenerator[bytes, None]:
    """The chunks of a file, or of a part of it; the first one comes only if the store has all bytes of the file.

    Raises:
        ApiError: As for `from_store`; 500, the store has more or fewer bytes of the file.
        NotFound: The store has none.
    """
    await check_size(deps, record)
    async for chunk in chunks_from_store(deps.store.read(record.key, start, end)):
        yield chunk


async def check_size(deps: Dependencies, record: FileRecord) -> None:
    """Check that the store has all bytes of a file; it raises the errors of `file_from_store`."""
    if (size := await from_store(deps.store.size(record.key))) != record.file.bytes:
        raise damaged(record.file.id, f"{size:,} instead of {record.file.bytes:,} bytes")
