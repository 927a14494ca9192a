"""Lines of a stream become records: those without fault to be run, the others as lines of the error file.

How many lines make a record follows from how many came together, so that a line on its own waits for no other.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
import orjson

from tidemill.ingest.files.packing import RECORD_BYTES_MAX, RECORD_LINES_MAX, RUN_LINES, Origin, Record
from tidemill.ingest.files.validation import CUSTOM_ID_CHARS_MAX, Fault
from tidemill.schemas.jsonl import line
from tidemill.schemas.log.codec import LineMark, LineRef, RequestHead

FAILED_LINES_MAX: Final = 1024
FAILED_BYTES_MAX: Final = 256 * 1024
"""Error lines of one record: with their marks they are far below what a record may hold."""


class _Named(msgspec.Struct):
    custom_id: str


_named: Final = msgspec.json.Decoder(_Named)

Placed = tuple[int, bytes | LineRef]
"""A line and its place in the batch, or where in the store it is."""


def requests(origin: Origin, placed: list[Placed]) -> Iterator[Record]:
    """The records of lines that are in the order of their places, which may have gaps."""
    held: list[bytes] = []
    first = size = 0
    for place, data in placed:
        is_next = held and place == first + len(held) and place // RUN_LINES == first // RUN_LINES
        is_room = isinstance(data, bytes) and len(held) < RECORD_LINES_MAX and size + len(data) < RECORD_BYTES_MAX
        if held and not (is_next and is_room):
            yield _record(origin, first, b"\n".join(held))
            held, size = [], 0
        if isinstance(data, LineRef):
            yield _record(origin, place, b"", data)
            continue
        if not held:
            first = place
        held.append(data)
        size += len(data) + 1
    if held:
        yield _record(origin, first, b"\n".join(held))


def failures(batch_id: str, faults: Iterable[tuple[int, bytes, Fault]]) -> Iterator[tuple[list[LineMark], bytes]]:
    """The error lines of lines with a fault: marks and value of each record."""
    marks: list[LineMark] = []
    texts: list[bytes] = []
    size = 0
    for place, data, fault in faults:
        text = line.unanswered(batch_id, place, _custom_id(data), code=fault.code, message=fault.message)
        marks.append(LineMark(index=place, size=len(text), failed=True, attempts=0))
        texts.append(text)
        size += len(text)
        if len(marks) == FAILED_LINES_MAX or size >= FAILED_BYTES_MAX:
            yield marks, b"".join(texts)
            marks, texts, size = [], [], 0
    if marks:
        yield marks, b"".join(texts)


def _record(origin: Origin, first: int, value: bytes, ref: LineRef | None = None) -> Record:
    head = RequestHead(
        batch_id=origin.batch_id,
        project=origin.project,
        first=first,
        deadline=origin.deadline,
        url=origin.url,
        ref=ref,
    )
    return Record(key=f"{origin.batch_id}/{first // RUN_LINES}", value=value, head=head)


def _custom_id(data: bytes) -> bytes:
    """The line's own, as JSON; null where it has none that can be told."""
    try:
        custom_id = _named.decode(data).custom_id
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return b"null"
    if not 0 < len(custom_id) <= CUSTOM_ID_CHARS_MAX:
        return b"null"
    return orjson.dumps(custom_id)
