"""The results of a message batch as JSON lines, made from the output and error file of an ordinary batch.

Source of the shapes: Anthropic's API reference, "Retrieve Message Batch results". A request has `succeeded` with
its message, or `errored` with an error, or it was not executed before the batch was `canceled` or `expired`.
"""

import re
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
import orjson

from tidemill.api import error_bodies, errors
from tidemill.api.batches import report, result_pages
from tidemill.api.batches.result_pages import Error, Response
from tidemill.api.dependencies import Dependencies, file_from_store
from tidemill.schemas import UNREADABLE, decoded
from tidemill.schemas.jsonl import line, server_error
from tidemill.schemas.jsonl.lines import Line, lines_of
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.batch import Batch, BatchError, Status

JOINED_BYTES: Final = 64 * 1024
"""Lines are joined up to this size before they are sent."""
INVALID: Final = "invalid_request_error"
NOT_RUN: Final = {line.EXPIRED[0]: b'{"type":"expired"}', line.CANCELLED[0]: b'{"type":"canceled"}'}
"""The results of requests that were not executed, by the code of their error line."""
KINDS: Final = {"model_not_found": "not_found_error", "server_error": "api_error"}
"""Types of the errors that ingest finds, by their code; others are `INVALID`."""
_BODY: Final = re.compile(r"^(Invalid (?:type for )?)'body\.")
_RESULT: Final = b'{"custom_id":%b,"result":%b}\n'
_ERRORED: Final = b'{"type":"errored","error":%b}'


class _CustomId(msgspec.Struct):
    custom_id: str = ""


_objects: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_custom_ids: Final = msgspec.json.Decoder(_CustomId)


async def written(deps: Dependencies, project: str, batch: Batch) -> AsyncIterator[bytes]:
    """The results of an ended batch, in the order of its requests."""
    is_unrun = batch.tidemill.receipt is None or report.unrun_code(batch) is not None
    lines = _of_input(deps, project, batch) if is_unrun else _of_files(deps, project, batch)
    joined = bytearray()
    async for text in lines:
        joined += text
        if len(joined) >= JOINED_BYTES:
            yield bytes(joined)
            joined.clear()
    yield bytes(joined)


async def _of_files(deps: Dependencies, project: str, batch: Batch) -> AsyncIterator[bytes]:
    count = 0
    async for found, text in result_pages.every(deps, project, batch):
        yield result(text, failed=found.failed)
        count += 1
    receipt = batch.tidemill.receipt
    if receipt is not None and count < receipt.lines - max(0, receipt.missing):
        # A file was deleted meanwhile: the client must not take the rest for the whole.
        raise errors.unavailable("results of this batch")


async def _of_input(deps: Dependencies, project: str, batch: Batch) -> AsyncIterator[bytes]:
    """The results of a batch without files: its input was rejected, or never checked."""
    if (record := deps.view.file(project, batch.input_file_id)) is None:
        return
    rejected = Rejected(batch)
    chunks = file_from_store(deps, record)
    try:
        async for lines in lines_of(chunks, deps.settings.line_bytes_max):
            for each in lines:
                yield rejected.result(each)
    except NotFound as error:
        raise errors.unavailable("input of this batch") from error


class Rejected:
    """The results of a batch without files."""

    def __init__(self, batch: Batch) -> None:
        self._status = batch.status
        faults = [each for each in (batch.errors.data if batch.errors else ()) if each.code != "too_many_errors"]
        self._by_line = {each.line: each for each in faults if each.line is not None}
        self._of_file = next((each for each in faults if each.line is None), None)
        first = _said(faults[0]) if faults else ""
        place = f"requests.{faults[0].line - 1}." if faults and faults[0].line else ""
        self._other = f"This request was not executed, because the batch is invalid: {place}{first}"

    def result(self, each: Line) -> bytes:
        """The result of a line of the input."""
        if self._status is Status.FAILED:
            outcome = _ERRORED % orjson.dumps(self._error(each.number))
        else:
            outcome = NOT_RUN[line.EXPIRED[0] if self._status is Status.EXPIRED else line.CANCELLED[0]]
        return line.escaped(_RESULT % (_custom_id(each.data), outcome))

    def _error(self, number: int) -> dict[str, Any]:
        if (fault := self._by_line.get(number) or self._of_file) is None:
            return _envelope(INVALID, self._other)
        return _envelope(KINDS.get(fault.code, INVALID), _said(fault))


def result(text: bytes, *, failed: bool) -> bytes:
    """The result of a line of an output file, or of an error file if it `failed`."""
    found = result_pages.parse(text)
    if not failed and found.response is not None:
        return _RESULT % (found.custom_id, b'{"type":"succeeded","message":%b}' % found.response.body)
    error = found.error or Error(code="", message="")
    outcome = NOT_RUN.get(error.code) or _ERRORED % _error(error, found.response)
    return _RESULT % (found.custom_id, outcome)


def _error(error: Error, response: Response | None) -> bytes:
    """The error of a request; an error of a server in Anthropic's shape keeps its text."""
    if response is None:
        kind = INVALID if error.code in line.REFUSALS else "api_error"
        return orjson.dumps(_envelope(KINDS.get(error.code, kind), _worded(error.message)))
    said = decoded(_objects, response.body) or {}
    has_shape = decoded(_objects, said.get("error", b"")) is not None
    if has_shape and bytes(said.get("type", b"")) == b'"error"':
        return msgspec.json.encode({"request_id": response.request_id or None, **said})
    message = error.message or server_error.message(response.body)
    kind = error_bodies.kind_of(response.status_code)
    return orjson.dumps(_envelope(kind, message, response.request_id or None))


def _said(fault: BatchError) -> str:
    """The message of a fault, with the field below `params`, as Anthropic's clients name it."""
    is_inside = (fault.param or "").startswith("body")
    message = _worded(fault.message)
    return f"params{(fault.param or '').removeprefix('body')}: {message}" if is_inside else message


def _worded(message: str) -> str:
    """A message of ingest with Anthropic's name of the body."""
    return _BODY.sub(r"\1'params.", message, 1)


def _envelope(kind: str, message: str, request_id: str | None = None) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def _custom_id(data: bytes | None) -> bytes:
    try:
        return orjson.dumps(_custom_ids.decode(data or b"{}").custom_id)
    except (orjson.JSONEncodeError, *UNREADABLE):
        return b'""'
