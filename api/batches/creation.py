"""Creates a batch exactly once, even if several api processes get the same request several times.

1. A claim goes to `tidemill.claims`: the batch's id, its fingerprint, and the command to come.
2. If the request may be a repetition, or a retry may have overtaken it, the api waits until it reads its claim
   back. The first claim of an idempotency key, or the claim of the first try, decides which batch it is; if a
   retry came to the log before its first try, the claim of the retry does.
3. The command goes to `tidemill.commands`. After a crash between 1 and 3 a repetition sends the same command.
4. The view shows the batch.

A command that is sent twice changes nothing the second time.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Request
from opentelemetry.trace import SpanKind
from pydantic import AfterValidator, ConfigDict, Field

from tidemill.api import errors
from tidemill.api.batches.batch_request import BatchRequest
from tidemill.api.dependencies import Dependencies, chunks_from_store, current
from tidemill.api.requests import faults, reading
from tidemill.api.requests.parts import Headers
from tidemill.schemas import fingerprint_of, ids
from tidemill.schemas import headers as forwarded
from tidemill.schemas.jsonl.line import model_of
from tidemill.schemas.jsonl.lines import lines_of
from tidemill.schemas.log.messages import BatchCreated, BatchRecord, Claim, InputRef
from tidemill.schemas.log.topics import COMMANDS
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.batch import Batch, Dedupe
from tidemill.telemetry import context, tracing

CREATE: Final = f"create {COMMANDS.name}"
CLAIM_SECONDS_MAX = 10.0
"""How long the api waits to read its own claim back."""
LAG_SECONDS_MAX: Final = 3600.0
"""How far this process's view of one topic may be behind that of another."""
OVERTAKEN_SECONDS_MIN: Final = 0.3
"""A first try whose claim is in the log sooner is ahead of its retries: the SDKs wait for 0.375 s or longer."""
KEY_CHARS_MAX = 255
RETRIES_CHARS_MAX = 16
_KEY: Final = f"^[ -~]{{1,{KEY_CHARS_MAX}}}$"


def _check_key(key: str) -> str:
    if not key or any(not " " <= char <= "~" for char in key):
        raise faults.wrong("invalid_value", "it must be 1 to 255 printable ASCII characters.")
    return key


class Repetition(reading.Parameters):
    """Headers of a create: whether it may repeat another request."""

    model_config = ConfigDict(validate_by_name=True)

    key: (
        Annotated[
            str,
            Field(max_length=KEY_CHARS_MAX, json_schema_extra={"minLength": 1, "pattern": _KEY}),
            AfterValidator(_check_key),
        ]
        | None
    ) = Field(None, alias="Idempotency-Key")
    """Requests with one key create one batch, also in different api processes."""
    retries: Annotated[str, Field(max_length=RETRIES_CHARS_MAX)] = Field("0", alias="x-stainless-retry-count")
    """How often the SDK has sent the request before."""

    @property
    def is_retry(self) -> bool:
        """Whether the client has sent it before."""
        return self.retries not in {"", "0"}

    def batch_id(self, project: str) -> str | None:
        """The id of the batch that the key stands for; None without a key."""
        return None if self.key is None else ids.derived_batch_id(project, self.key)


@dataclass(frozen=True, kw_only=True)
class NewBatchHeaders:
    """The headers of a request for a new batch."""

    repetition: Repetition
    forwarded: dict[str, str]
    """Those that go with each call of the batch."""
    received_at: float
    """Unix time at which the request came."""
    seen: int
    """The offset after the last claim that this process had read then."""


class _Headers(Headers[Repetition]):
    """Reads them; the route must find the caller first."""

    async def __call__(self, request: Request) -> NewBatchHeaders:  # type: ignore[override]
        """Read them.

        Raises:
            ApiError: 400, a value is not printable ASCII, or is too long.
        """
        repetition = await super().__call__(request)
        deps = await current(request)
        received_at, names = deps.clock(), deps.settings.forwarded_headers(request.state.project)
        found = {name: ", ".join(given) for name in names if (given := request.headers.getlist(name))}
        for name, value in found.items():
            if not forwarded.is_value(value):
                fault = (
                    f"it is forwarded, so it must be 1 to {forwarded.VALUE_CHARS_MAX} printable ASCII characters."
                )
                raise errors.invalid_param(name, fault)
        if len(forwarded.lines(found)) > forwarded.LINES_BYTES_MAX:
            most = forwarded.LINES_BYTES_MAX
            fault = f"the headers that are forwarded ({', '.join(found)}) have more than {most} bytes together."
            raise errors.invalid_param(next(iter(found)), fault)
        seen = deps.view.claims.seen
        return NewBatchHeaders(repetition=repetition, forwarded=found, received_at=received_at, seen=seen)


CreateHeaders = Annotated[NewBatchHeaders, Depends(_Headers(Repetition))]


async def create(
    deps: Dependencies,
    project: str,
    request: BatchRequest,
    source: Callable[[], Awaitable[InputRef | None]],
    headers: NewBatchHeaders,
    *,
    fingerprint: str | None = None,
    publish: Callable[[BatchCreated], Awaitable[None]] | None = None,
) -> Batch:
    """Create a batch, or find the one that the same request created before.

    It calls `source`, which finds the input, only for a new batch. The `fingerprint` identifies the request, by
    default by its fields. The forwarded headers do not, so those of the first try count. `publish` sends the
    command in another way than to `commands`.

    Raises:
        ApiError: 409, the key was used for another request, or its batch is deleted.
        LogUnavailable: The log does not answer; the same request may be sent again.
    """
    if fingerprint is None:
        is_new_file = request.input_sha256 is not None or request.input_uri is not None
        fingerprint = fingerprint_of(request.model_dump(exclude={"input_file_id"} if is_new_file else None))
    repeats = headers.repetition
    batch_id = repeats.batch_id(project)
    if batch_id is not None and deps.view.erasures.is_deleted(project, batch_id):
        raise errors.batch_deleted()
    if (known := _known(deps, project, request, fingerprint, repeats)) is not None:
        return await _published(deps, known, publish)
    if batch_id is not None and deps.view.ledger.has(batch_id, ended_before=deps.clock() - LAG_SECONDS_MAX):
        # Its deletion is forgotten, too. A second batch of this id would replace the entry.
        raise errors.batch_deleted()
    ref = await source()
    record = deps.view.file(project, request.input_file_id)
    filename = None if record is None else record.file.filename
    if request.dedupe is None:
        request = request.model_copy(update={"dedupe": await _usual_dedupe(deps, ref)})
    new_id = batch_id or ids.new_batch_id()
    attributes = tracing.messaging("create", "send", COMMANDS.name) | {tracing.BATCH_ID: new_id}
    with context.bound(batch_id=new_id), tracing.span(CREATE, SpanKind.PRODUCER, attributes) as span:
        batch = request.batch(new_id, int(deps.clock()), filename, headers.forwarded, tracing.traceparent_of(span))
        command = BatchCreated(
            project=project,
            batch=batch,
            input=ref,
            output_expires_after=request.output_expires_after,
            answer_schema=request.answer_schema,
        )
        is_retry = repeats.is_retry
        claim = Claim(command=command, fingerprint=fingerprint, is_retry=is_retry, seen=headers.seen)
        await deps.publisher.claim(claim)
        known = command
        if batch_id is not None or is_retry or deps.clock() >= headers.received_at + OVERTAKEN_SECONDS_MIN:
            known = await _first_command(deps, command, fingerprint, repeats)
        return await _published(deps, known, publish)


async def _published(
    deps: Dependencies, command: BatchCreated, publish: Callable[[BatchCreated], Awaitable[None]] | None
) -> Batch:
    """Publish the command, unless the view shows its batch already; returns the batch."""
    if (shown := deps.view.batch(command.project, command.batch.id)) is not None:
        return Batch.model_validate_json(shown)
    await (deps.publisher.command(command.batch.id, command) if publish is None else publish(command))
    return deps.view.put_batch(BatchRecord(project=command.project, batch=command.batch))


async def _usual_dedupe(deps: Dependencies, ref: InputRef | None) -> Dedupe | None:
    """`usual_dedupe` of an input that is in the store."""
    if ref is None or ref.source is not None:
        return None
    try:
        async with aclosing(chunks_from_store(deps.store.read(ref.key))) as chunks:
            return await usual_dedupe(deps, chunks)
    except NotFound:
        return None  # ingest rejects the batch


async def usual_dedupe(deps: Dependencies, chunks: AsyncIterator[bytes]) -> Dedupe | None:
    """The `dedupe` setting of the model that the first line names; None if nothing is deduplicated.

    The command carries it, since ingest must find the same copies again after a crash.
    """
    serving = deps.serving
    if all(model.dedupe == "none" for model in serving.models.values()):
        return None
    name = model_of(await _first_line(chunks, deps.settings.line_bytes_max)) or ""
    model = serving.models.get(serving.aliases.get(name, name))
    return None if model is None or model.dedupe == "none" else model.dedupe


async def _first_line(chunks: AsyncIterator[bytes], line_bytes_max: int) -> bytes:
    """The first line that is not blank; empty without one."""
    async with aclosing(lines_of(chunks, line_bytes_max)) as found:
        async for lines in found:
            for line in lines:
                return line.data or b""
    return b""


def claimed(deps: Dependencies, project: str, fingerprint: str, repeats: Repetition) -> Claim | None:
    """The claim of the same request, if this process has seen it.

    Raises:
        ApiError: 409, as `create`.
    """
    if (batch_id := repeats.batch_id(project)) is None:
        return deps.view.claims.repeated(project, fingerprint) if repeats.is_retry else None
    claim = deps.view.claims.first(project, batch_id)
    if claim is not None and claim.fingerprint != fingerprint:
        raise errors.key_reused()
    return claim


def _known(
    deps: Dependencies, project: str, request: BatchRequest, fingerprint: str, repeats: Repetition
) -> BatchCreated | None:
    """The command of the same request, if this process has seen it.

    Raises:
        ApiError: 409, as `create`.
    """
    if (claim := claimed(deps, project, fingerprint, repeats)) is not None:
        return claim.command
    if (batch_id := repeats.batch_id(project)) is None:
        return None
    # The log keeps claims for days, batches for longer.
    if (shown := deps.view.batch(project, batch_id)) is None:
        return None
    batch = Batch.model_validate_json(shown)
    if request.input_sha256 is not None:
        source = deps.view.file(project, batch.input_file_id)
        if source is not None and source.sha256 == request.input_sha256:
            request = request.model_copy(update={"input_file_id": source.file.id})
    if not request.matches(batch):
        raise errors.key_reused()
    return BatchCreated(project=project, batch=batch)


async def _first_command(
    deps: Dependencies, own: BatchCreated, fingerprint: str, repeats: Repetition
) -> BatchCreated:
    """Wait for the claim, and return the command of the first one.

    Raises:
        ApiError: 409, as `create`; 503, the claim does not come back.
    """
    claims, project, batch_id = deps.view.claims, own.project, own.batch.id
    first = await deps.view.changes.wait_for(
        batch_id, lambda: claims.first(project, batch_id), seconds_max=CLAIM_SECONDS_MAX
    )
    if first is None:
        raise errors.unavailable("server's view of the log")
    if first.fingerprint != fingerprint:
        raise errors.key_reused()
    if repeats.is_retry and repeats.key is None:
        first = claims.repeated(project, fingerprint) or first
    return claims.stands_for(first).command if repeats.key is None else first.command
