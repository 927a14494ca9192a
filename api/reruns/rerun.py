"""Creates the batch of a rerun: lines of a finished batch run again.

1. It finds the wanted lines in the error file, unless all lines are wanted.
2. It copies them from the old input into a new one. Its id and bytes follow from the old batch and the selection,
   so a second try makes the same file.
3. It creates the new batch like any other (`api/batches/creation.py`), with a link to the old one.
"""

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Final

from tidemill.api import errors
from tidemill.api.batches import answer_schema, batch_request, creation, report
from tidemill.api.batches.batch_request import BatchRequest
from tidemill.api.batches.token_estimate import TokenEstimate
from tidemill.api.dependencies import Dependencies, file_from_store, from_store
from tidemill.api.requests.fields import Expiry, Metadata, Model, Window
from tidemill.api.requests.reading import Body
from tidemill.api.reruns import input_file
from tidemill.api.reruns.input_file import rewrite_line
from tidemill.api.reruns.selection import Kind, Selection
from tidemill.api.view.quotas import Booking
from tidemill.api.view.result_lines import bounded, without_bytes
from tidemill.schemas import ids
from tidemill.schemas.bitmap import Bitmap
from tidemill.schemas.jsonl.line import model_of
from tidemill.schemas.jsonl.lines import Line, lines_of
from tidemill.schemas.log.messages import FileRecord, InputRef
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.batch import Batch
from tidemill.schemas.resources.error import ApiError
from tidemill.schemas.resources.file import file_kind

PAGE_LINES: Final = 1_000
"""Lines of an error file that are read at a time."""
GONE: Final = "file_gone"
"""The code of a rerun whose lines are deleted."""


class RerunOptions(Body):
    """Options of a rerun or a replay; by default, the old ones."""

    model: Model | None = None
    """Another model."""
    completion_window: Window | None = None
    """Another completion window."""
    metadata: Metadata | None = None
    """Other metadata."""
    output_expires_after: Expiry | None = None


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """A rerun: which lines of a batch, on which model, and the request for the new batch."""

    batch: Batch
    selection: Selection
    of_model: str | None
    """Only lines of this model; None for all."""
    model: str | None
    """Another model; None keeps the model of each line."""
    request: BatchRequest


def rerun_of(
    deps: Dependencies, batch: Batch, selection: Selection, options: RerunOptions, of_model: str | None
) -> Rerun:
    """The rerun of a batch; by default with the options of the batch, and with the lines of all its models.

    Raises:
        ApiError: 400, the model does not serve the endpoint; 404, there is no such model.
    """
    settings = deps.settings
    of_model = of_model and deps.serving.aliases.get(of_model, of_model)
    before = batch.completion_window if batch.completion_window in settings.windows else settings.usual_window
    model = named_model(deps, options.model, batch.endpoint)
    request = BatchRequest(
        endpoint=batch.endpoint,
        input_file_id=_input_id(batch, selection, of_model, model),
        completion_window=options.completion_window or before,
        metadata=batch.metadata if options.metadata is None else options.metadata,
        output_expires_after=batch_request.expires_after(options.output_expires_after),
        name=batch.tidemill.name,
        dedupe=batch.tidemill.dedupe,
        rerun_of=batch.id,
    )
    return Rerun(batch=batch, selection=selection, of_model=of_model, model=model, request=request)


def _input_id(batch: Batch, selection: Selection, of_model: str | None, model: str | None) -> str:
    """The id of the input: the old one if all lines run unchanged.

    The input of a stream may contain invalid requests, so it is never reused.
    """
    if selection.kind is Kind.ALL and of_model is None and model is None and batch.tidemill.stream is None:
        return batch.input_file_id
    wanted = f"{selection.model_dump_json()}\0{model or ''}" + (f"\0{of_model}" if of_model else "")
    return ids.derived_file_id(batch.id, f"rerun/{hashlib.sha256(wanted.encode()).hexdigest()}")


def named_model(deps: Dependencies, model: str | None, endpoint: str) -> str | None:
    """The name of a rerun's model, which may be asked for by an alias; None keeps the model of each line.

    Raises:
        ApiError: 400, it does not serve the endpoint; 404, there is none.
    """
    if model is None:
        return None
    model = deps.serving.aliases.get(model, model)
    if (known := deps.serving.models.get(model)) is None:
        raise errors.no_model(model)
    if endpoint not in known.endpoints:
        message = f"The model '{errors.shorten(model)}' does not serve {endpoint}."
        raise errors.invalid(message, param="model", code="model_not_supported")
    return model


async def create(deps: Dependencies, project: str, rerun: Rerun, headers: creation.NewBatchHeaders) -> Batch:
    """Create the batch of a rerun, or find the one that the same request has created.

    Raises:
        ApiError: 409, the batch is not over, or the lines are not there; 429, the project has no room.
        LogUnavailable: The log does not answer; the same request may be sent again.
    """
    _check_is_over(rerun.batch)
    with deps.booking(project) as booking:

        async def source() -> InputRef:
            record = await _input(deps, rerun, booking)
            return InputRef(key=record.key, bytes=record.file.bytes)

        try:
            schema = await answer_schema.of_batch(deps, rerun.batch)
        except ApiError:
            # An encrypted schema goes with the key of the input, which is then the reason.
            _old_input(deps, project, rerun.batch)
            raise
        request = rerun.request.model_copy(update={"answer_schema": schema})
        return await creation.create(deps, project, request, source, headers)


async def estimate(deps: Dependencies, project: str, rerun: Rerun) -> TokenEstimate:
    """Estimate the batch of a rerun, even if it has too many lines for a batch.

    Raises:
        ApiError: 409, the batch is not over, or the lines are not there; 429, other estimates run.
    """
    _check_is_over(rerun.batch)
    found = TokenEstimate(rerun.batch.endpoint)
    async with deps.gates.estimates.turn(project):
        old = _old_input(deps, project, rerun.batch)
        chosen = await _chosen(deps, project, rerun, old)
        async for chunk in _lines(deps, old, chosen, rerun.model):
            await asyncio.to_thread(_count, found, chunk)
    return found


def _count(found: TokenEstimate, chunk: bytes) -> None:
    for text in chunk.split(b"\n"):
        if text:
            found.add(text)


def _check_is_over(batch: Batch) -> None:
    if not batch.status.is_terminal:
        message = f"Cannot rerun a batch with status '{batch.status}': wait until it ends, or cancel it."
        raise errors.conflict(message)


def _old_input(deps: Dependencies, project: str, batch: Batch) -> FileRecord:
    """The input of a finished batch.

    Raises:
        ApiError: 409, it is deleted or expired.
    """
    if (record := deps.view.file(project, batch.input_file_id)) is None:
        raise _gone("input", batch.input_file_id)
    return record


async def _input(deps: Dependencies, rerun: Rerun, booking: Booking) -> FileRecord:
    """The input of the new batch; it is written unless it exists."""
    project, file_id = booking.project, rerun.request.input_file_id
    old = _old_input(deps, project, rerun.batch)
    known = old if file_id == old.file.id else deps.view.file(project, file_id)
    if known is not None:
        booking.reserve_batch(known.lines or 0)
        return known
    chosen = await _chosen(deps, project, rerun, old)
    count, most = old.lines or 0 if chosen is None else len(chosen), deps.settings.file_lines_max
    if count > most:
        message = (
            f"These are {count} lines, and a batch may have {most}: download the input file "
            f"'{old.file.id}' and run it with 'tidemill run', which makes several batches of it."
        )
        raise errors.invalid(message, param="lines", code="too_many_lines")
    booking.reserve_batch(count)
    chunks = _lines(deps, old, chosen, rerun.model)
    return await input_file.write(deps, booking, file_id, f"rerun-of-{rerun.batch.id}.jsonl", chunks)


async def _chosen(deps: Dependencies, project: str, rerun: Rerun, old: FileRecord) -> Bitmap | None:
    """Indices of the wanted lines; None for all.

    Raises:
        ApiError: 409, there is none, or the error file is deleted.
    """
    chosen = await _with_fates(deps, project, rerun, old)
    if rerun.of_model is None:
        return chosen
    found, aliases = Bitmap(), deps.serving.aliases

    def pick(lines: Iterable[tuple[Line, int]]) -> None:
        for line, index in lines:
            if chosen is None or index in chosen:
                # None for an invalid line of a stream, or of a batch that ended before its validation.
                named = model_of(line.data or b"")
                if named is not None and aliases.get(named, named) == rerun.of_model:
                    found.add(index)

    async for lines in _read(deps, old):
        await asyncio.to_thread(pick, lines)
    if not found:
        message = (
            f"The batch '{rerun.batch.id}' has no such lines of the model '{errors.shorten(rerun.of_model)}'."
        )
        raise errors.conflict(message, code="no_lines")
    return found


async def _with_fates(deps: Dependencies, project: str, rerun: Rerun, old: FileRecord) -> Bitmap | None:
    """Like `_chosen`, without regard to the model."""
    batch, selection = rerun.batch, rerun.selection
    if selection.kind is Kind.ALL and (batch.tidemill.stream is None or batch.error_file_id is None):
        return None
    if (code := report.unrun_code(batch)) is not None and selection.includes(code, None):
        return None
    chosen, others, invalid = Bitmap(), Bitmap(), 0
    if batch.error_file_id is not None:
        if (record := deps.view.file(project, batch.error_file_id)) is None:
            raise _gone("error", batch.error_file_id)
        try:
            async for index, text in _failures(deps, record.key):
                found = report.fault(text)
                (chosen if selection.includes(*found) else others).add(index)
                invalid += report.is_refused(*found)
        except NotFound as error:
            raise _gone("error", batch.error_file_id) from error
    if selection.kind is Kind.ALL:
        chosen.add_all_but(others, old.lines or 0)
    if not chosen:
        raise _no_lines(batch, selection, invalid)
    return chosen


def _no_lines(batch: Batch, selection: Selection, invalid: int) -> ApiError:
    """The batch has no such lines, besides `invalid` ones of a stream that are not valid requests."""
    wanted = f"{selection.kind}" if selection.kind is not Kind.CODES else "such"
    message = f"The batch '{batch.id}' has no {wanted} lines that can run again"
    if invalid and selection.kind in {Kind.FAILED, Kind.UNFINISHED, Kind.ALL}:
        are = "line is not a valid request" if invalid == 1 else "lines are not valid requests"
        message += f": its {invalid} failed {are}; append them corrected to an open batch"
    elif selection.kind is not Kind.ALL:
        message += "; the choice 'all' runs every valid line"
    return errors.conflict(f"{message}.", code="no_lines")


async def _failures(deps: Dependencies, key: str) -> AsyncIterator[tuple[int, bytes]]:
    """The lines of an error file, each with its index in the input."""
    sources, after = deps.lines.written([(file_kind(failed=True), key)]), -1
    while found := bounded(await from_store(deps.lines.page(sources, after, PAGE_LINES))):
        texts = deps.lines.read(found)
        for place in found:
            yield place.index, await from_store(anext(texts))
        after = found[-1].index


async def _lines(
    deps: Dependencies, old: FileRecord, chosen: Bitmap | None, model: str | None
) -> AsyncIterator[bytes]:
    """The chosen lines of an input file in chunks, each with a newline; by default all, on their own models.

    Raises:
        ApiError: 409, its bytes are not there; 503, the store does not answer.
    """

    def picked(lines: Iterable[tuple[Line, int]]) -> bytes:
        wanted = (line.data or b"" for line, index in lines if chosen is None or index in chosen)
        return b"".join(rewrite_line(data, model=model) + b"\n" for data in wanted)

    async for lines in _read(deps, old):
        # A chunk is some milliseconds of work.
        yield await asyncio.to_thread(picked, lines)


async def _read(deps: Dependencies, old: FileRecord) -> AsyncIterator[Iterable[tuple[Line, int]]]:
    """The lines of an input file by chunk, with their indices; see `_lines`."""
    indices = itertools.count()
    try:
        async for lines in lines_of(file_from_store(deps, old)):
            # The lines come first, since `zip` has read an index when they end otherwise.
            yield zip(lines, indices, strict=False)
    except NotFound as error:
        raise without_bytes(deps.view, old, _gone("input", old.file.id)) from error


def _gone(which: str, file_id: str) -> ApiError:
    message = f"The {which} file '{file_id}' of the batch is deleted, so its lines cannot be found."
    return errors.conflict(message, code=GONE)
