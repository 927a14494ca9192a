"""Ends the lines of a record that cannot be read.

If the headers and the value still show the batch, the first index and the lines, each line gets an error line at
once, so that its batch need not wait for the deadline. A line with an unreadable `custom_id` gets its error line
from results, at the deadline, with the `custom_id` of the input.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from tidemill.kafka.partitions.dead_letters import send_dead_letter
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.window import Entry
from tidemill.schemas import UNREADABLE, decoded, ids
from tidemill.schemas.bounds import CHAR_BYTES_MAX, CUSTOM_ID_CHARS_MAX
from tidemill.schemas.jsonl import line
from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import DecodeError, Headers, LineMark
from tidemill.schemas.ports import Outbox, Sender

CODE: Final = "unreadable_request"
_FIRST_DIGITS_MAX: Final = 10
MESSAGE: Final = "The record of this request was damaged in the log, so it was not run. Please send it again."
RECORD_LINES_MAX: Final = 256
"""Error lines in one record of outcomes: some hundred bytes each, and a `custom_id`."""
CUSTOM_ID_BYTES_MAX: Final = 2 + CHAR_BYTES_MAX * CUSTOM_ID_CHARS_MAX
"""Ingest refuses a longer one, whose error line might not fit into a record."""
RECORD_BYTES_MAX: Final = 512 * 1024


_indices = msgspec.json.Decoder(list[codec.Index])
_log = logging.getLogger(__name__)


async def give_up(
    entry: Entry,
    message: Any,
    reason: DecodeError,
    *,
    model: str,
    log: Sender,
    outbox: Outbox,
    closed: ClosedBatches,
) -> None:
    """Send the record to the dead letters and error lines to `outcomes`, then finish it.

    Args:
        entry: The record in its window.
        message: The record as Faust hands it over.
        reason: Why it cannot be read.
        model: The model that its lines name.
        log: Takes the dead letter.
        outbox: Takes the error lines.
        closed: Batches that get no error lines.
    """
    value = message.value or b""
    await send_dead_letter(log, message, stage="processors", reason=str(reason))
    try:
        for batch_id, lines, headers in error_lines(message.headers or (), value, model):
            if batch_id not in closed:
                await outbox.send(batch_id, lines, headers)
    except Exception:  # noqa: BLE001  results ends the lines at the deadline
        _log.exception("the lines of a dead letter got no error lines")
    entry.window.finish(entry)


def error_lines(
    headers: Iterable[tuple[str, bytes | None]], value: bytes, model: str
) -> Iterator[tuple[str, bytes, Headers]]:
    """Records of outcomes with error lines for a record's lines: batch id, value and headers of each."""
    found = dict(headers)
    batch_id = (found.get(codec.BATCH) or b"").decode("ascii", "replace")
    lines = value.split(b"\n")
    if not ids.is_batch_id(batch_id) or (places := _places(found, len(lines))) is None:
        return
    texts: list[bytes] = []
    marks: list[LineMark] = []
    size = 0
    for index, data in zip(places, lines, strict=True):
        try:
            custom_id = bytes(line.parse(data).custom_id)
        except UNREADABLE:
            continue
        if len(custom_id) > CUSTOM_ID_BYTES_MAX:
            continue
        text = line.unanswered(batch_id, index, custom_id, code=CODE, message=MESSAGE)
        if texts and (len(texts) >= RECORD_LINES_MAX or size + len(text) > RECORD_BYTES_MAX):
            yield batch_id, b"".join(texts), codec.lines_headers(batch_id, marks, model=model)
            texts, marks, size = [], [], 0
        texts.append(text)
        marks.append(LineMark(index, len(text), failed=True, attempts=0))
        size += len(text)
    if texts:
        yield batch_id, b"".join(texts), codec.lines_headers(batch_id, marks, model=model)


def _places(found: Mapping[str, bytes | None], count: int) -> Sequence[int] | None:
    """The indices of a record's lines; None if its headers do not show them."""
    if (indices := found.get(codec.INDICES)) is not None:
        listed = decoded(_indices, indices)
        return listed if listed is not None and len(listed) == count else None
    first = (found.get(codec.FIRST) or b"").decode("ascii", "replace")
    if not first.isdecimal() or len(first) > _FIRST_DIGITS_MAX:
        return None
    return range(int(first), int(first) + count)
