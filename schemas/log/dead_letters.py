"""Dead letters: a record that a stage could not read, as it lies in `tidemill.dead`.

Value and headers are those of the record; what is said about it stands in further headers:

| header | holds |
|---|---|
| `tidemill-dead-stage` | who could not read it |
| `tidemill-dead-source` | `topic/partition/offset`: the letter's id, and its key in `tidemill.dead` |
| `tidemill-dead-reason` | why |
| `tidemill-dead-key` | the record's own key; missing where it had none |
| `tidemill-dead-cut` | bytes of a value that was too large to be kept; the letter has none then |
| `tidemill-dead-requeued` | this is no letter but a mark: the letter of the same id was sent to its topic again |

A record that was sent again carries `tidemill-requeued` with the id of its letter.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tidemill.schemas.log.codec import DecodeError, Headers

VALUE_BYTES_MAX: Final = 900 * 1024
"""With its headers a letter has to stay below `RECORD_BYTES_MAX`."""
HEADERS_BYTES_MAX: Final = 32 * 1024
"""Headers of a record beyond this are left out of its letter, and so is a longer rest of its key."""
_HEADER_BYTES: Final = 16
"""What a header takes beside its name and its value, at most."""
_DIGITS_MAX: Final = 16
REASON_BYTES_MAX: Final = 1000

STAGE: Final = "tidemill-dead-stage"
SOURCE: Final = "tidemill-dead-source"
REASON: Final = "tidemill-dead-reason"
KEY: Final = "tidemill-dead-key"
CUT: Final = "tidemill-dead-cut"
MARK: Final = "tidemill-dead-requeued"
REQUEUED: Final = "tidemill-requeued"
UNREAD: Final = "tidemill-unread"
"""On a record that stands for a batch of records which the client did not read: why (`decompression.py`)."""
_OURS: Final = (STAGE, SOURCE, REASON, KEY, CUT, MARK)


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A dead letter."""

    id: str
    """`topic/partition/offset` of the record."""
    topic: str
    stage: str
    reason: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    """The record's own."""
    cut_bytes: int | None
    """The length of a value that was not kept."""
    at: float
    """When it was buried, Unix seconds."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Says that a letter was sent to its topic again."""

    id: str
    at: float


def headers(
    source: str, own: Iterable[tuple[str, bytes | None]], *, key: bytes | None, stage: str, reason: str
) -> Headers:
    """The headers of a letter.

    Args:
        source: `topic/partition/offset`.
        own: The record's headers.
        key: The record's key.
        stage: Who could not read it.
        reason: Why.
    """
    kept: list[tuple[str, bytes | None]] = []
    room = HEADERS_BYTES_MAX
    own = tuple(own)
    if (unread := dict(own).get(UNREAD)) is not None:
        reason = unread.decode(errors="replace")
    for name, content in own:
        room -= _HEADER_BYTES + len(name.encode()) + len(content or b"")
        if room >= 0 and name not in _OURS:
            kept.append((name, content))
    said: list[tuple[str, bytes | None]] = [
        (STAGE, stage.encode()),
        (SOURCE, source.encode()),
        (REASON, reason.encode("utf-8", "backslashreplace")[:REASON_BYTES_MAX]),
    ]
    if key is not None:
        said.append((KEY, key[:HEADERS_BYTES_MAX]))
    return [*kept, *said]


def read(found: Iterable[tuple[str, bytes | None]], value: bytes | None, at: float) -> Letter | Mark:
    """Read a record of `tidemill.dead`.

    Raises:
        DecodeError: It is no letter.
    """
    own = tuple(found)
    said = {name: content or b"" for name, content in own}
    source = said.get(SOURCE, b"").decode("utf-8", "replace")
    topic, _, place = source.partition("/")
    if not topic or not place:
        raise DecodeError("it does not say where it is from")
    if MARK in said:
        return Mark(id=source, at=at)
    cut = said.get(CUT, b"").decode("ascii", "replace")
    return Letter(
        id=source,
        topic=topic,
        stage=said.get(STAGE, b"").decode("utf-8", "replace"),
        reason=said.get(REASON, b"").decode("utf-8", "replace"),
        key=said.get(KEY),
        value=value,
        headers=tuple((name, content) for name, content in own if name not in _OURS),
        cut_bytes=int(cut) if cut.isdigit() and len(cut) <= _DIGITS_MAX else None,
        at=at,
    )


def requeued(letter: Letter) -> Headers:
    """The headers of a letter's record when it is sent to its topic again."""
    own = [(name, content) for name, content in letter.headers if name != REQUEUED]
    return [*own, (REQUEUED, letter.id.encode())]


def mark(letter_id: str) -> Headers:
    """The headers of the mark that a letter was sent again."""
    return [(SOURCE, letter_id.encode()), (MARK, b"1")]
