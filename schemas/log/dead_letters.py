"""Dead letters: records of `tidemill.dead` that a stage could not process.

A letter has the value and headers of the record, and these headers:

| header | holds |
|---|---|
| `tidemill-dead-stage` | the stage |
| `tidemill-dead-source` | `topic/partition/offset`: the letter's id, and its key in `tidemill.dead` |
| `tidemill-dead-reason` | the reason |
| `tidemill-dead-key` | the record's own key, if it had one |
| `tidemill-dead-project` | the project of a producer's record, if its credential proved it |
| `tidemill-dead-cut` | the bytes of a value that was too large, and is missing |
| `tidemill-dead-requeued` | instead of a letter, a mark that the letter with this id was sent to its topic again |

A record that was sent again has the id of its letter in `tidemill-requeued`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tidemill.schemas.bounds import ID_CHARS_MAX
from tidemill.schemas.log.codec import DecodeError, Headers, batch_of, decode_command, decode_fact, lines_batch
from tidemill.schemas.log.messages import BatchCreated, Command, Fact
from tidemill.schemas.log.topics import COMMANDS, INTAKE

VALUE_BYTES_MAX: Final = 900 * 1024
"""With its headers a letter must fit into `RECORD_BYTES_MAX`."""
HEADERS_BYTES_MAX: Final = 32 * 1024
"""A letter drops headers and parts of a key beyond this."""
_HEADER_BYTES: Final = 16
"""The most bytes that a header takes besides its name and value."""
_DIGITS_MAX: Final = 16
REASON_BYTES_MAX: Final = 1000

STAGE: Final = "tidemill-dead-stage"
SOURCE: Final = "tidemill-dead-source"
REASON: Final = "tidemill-dead-reason"
KEY: Final = "tidemill-dead-key"
PROJECT: Final = "tidemill-dead-project"
CUT: Final = "tidemill-dead-cut"
MARK: Final = "tidemill-dead-requeued"
REQUEUED: Final = "tidemill-requeued"
UNREAD: Final = "tidemill-unread"
"""Marks a stand-in for records that could not be decompressed, with the reason (`decompression.py`)."""
_OURS: Final = (STAGE, SOURCE, REASON, KEY, PROJECT, CUT, MARK)


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A dead letter."""

    id: str
    """`topic/partition/offset` of the record."""
    topic: str
    stage: str
    reason: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    """The headers of the record."""
    cut_bytes: int | None
    """The length of a value that was too large."""
    at: float
    """Unix seconds."""
    project: str | None = None
    """The project of a producer's record, if its credential proved it."""

    @property
    def stream(self) -> str | None:
        """The name of the stream that a record of the intake was for."""
        is_named = self.topic == INTAKE.name and self.key is not None
        return (self.key or b"").decode(errors="replace") if is_named else None


@dataclass(frozen=True, kw_only=True)
class RequeueMark:
    """Marks a letter as sent to its topic again."""

    id: str
    at: float


def headers(
    source: str,
    own: Iterable[tuple[str, bytes | None]],
    *,
    key: bytes | None,
    stage: str,
    reason: str,
    project: str | None = None,
) -> Headers:
    """The headers of a letter, whose source is `topic/partition/offset`, with the record's own headers and key."""
    kept: list[tuple[str, bytes | None]] = []
    room = HEADERS_BYTES_MAX
    own = tuple(own)
    if (unread := dict(own).get(UNREAD)) is not None:
        reason = unread.decode(errors="replace")
    for name, content in own:
        room -= _HEADER_BYTES + len(name.encode()) + len(content or b"")
        if room >= 0 and name not in _OURS:
            kept.append((name, content))
    ours: list[tuple[str, bytes | None]] = [
        (STAGE, stage.encode()),
        (SOURCE, source.encode()),
        (REASON, reason.encode("utf-8", "backslashreplace")[:REASON_BYTES_MAX]),
    ]
    if key is not None:
        ours.append((KEY, key[:HEADERS_BYTES_MAX]))
    if project is not None:
        ours.append((PROJECT, project.encode()))
    return [*kept, *ours]


def decode(found: Iterable[tuple[str, bytes | None]], value: bytes | None, at: float) -> DeadLetter | RequeueMark:
    """Decode a record of `tidemill.dead`.

    Raises:
        DecodeError: It is neither a letter nor a mark.
    """
    own = tuple(found)
    values = {name: content or b"" for name, content in own}
    source = values.get(SOURCE, b"").decode("utf-8", "replace")
    topic, _, place = source.partition("/")
    if not topic or not place:
        raise DecodeError("the record does not name its source")
    if MARK in values:
        return RequeueMark(id=source, at=at)
    cut = values.get(CUT, b"").decode("ascii", "replace")
    return DeadLetter(
        id=source,
        topic=topic,
        stage=values.get(STAGE, b"").decode("utf-8", "replace"),
        reason=values.get(REASON, b"").decode("utf-8", "replace"),
        key=values.get(KEY),
        value=value,
        headers=tuple((name, content) for name, content in own if name not in _OURS),
        cut_bytes=int(cut) if cut.isdigit() and len(cut) <= _DIGITS_MAX else None,
        at=at,
        project=values[PROJECT].decode("utf-8", "replace") if PROJECT in values else None,
    )


def requeue_headers(letter: DeadLetter) -> Headers:
    """The headers of a letter's record when it is sent to its topic again."""
    own = [(name, content) for name, content in letter.headers if name != REQUEUED]
    return [*own, (REQUEUED, letter.id.encode())]


def mark_headers(letter_id: str) -> Headers:
    """The headers of the mark that a letter was sent again."""
    return [(SOURCE, letter_id.encode()), (MARK, b"1")]


@dataclass(frozen=True, kw_only=True, slots=True)
class IdentifiedBatch:
    """The batch of a record that may be otherwise unreadable."""

    batch_id: str
    created: BatchCreated | None = None
    """The record itself, if it creates the batch."""


def identify_batch(
    topic: str, headers: Iterable[tuple[str, bytes | None]] | None, value: bytes | None
) -> IdentifiedBatch | None:
    """The batch of a record of `commands` or `outcomes`, whatever else is wrong with it; None if unknown."""
    try:
        if topic == COMMANDS.name:
            message: Command | Fact = decode_command(value)
        elif (batch_id := lines_batch(headers)) is not None:
            return IdentifiedBatch(batch_id=batch_id) if len(batch_id) <= ID_CHARS_MAX else None
        else:
            message = decode_fact(value)
    except (DecodeError, ValueError):
        return None
    found = batch_of(message)
    created = message if isinstance(message, BatchCreated) else None
    return None if found is None else IdentifiedBatch(batch_id=found, created=created)
