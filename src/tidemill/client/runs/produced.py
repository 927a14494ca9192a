"""The note of `tidemill produce`, from which the same command goes on: `produced.json`.

It is in the user's state directory from before the first record of a file until the service shows the batch of
the last one.
"""

from pathlib import Path

import msgspec

from tidemill.client.errors import UsageError
from tidemill.schemas import UNREADABLE
from tidemill.storage.atomic_file import replacing


class Produced(msgspec.Struct, frozen=True):
    """The newest file of a stream that was not sent to its end, as far as is known."""

    sha256: str
    first: int
    """The number of its first record."""
    may_have_ended: bool = False
    """Whether Kafka may have an end of the stream from an earlier try."""


def read(note: Path) -> Produced | None:
    """The file that an earlier try began; None if there was none.

    Raises:
        UsageError: The note is damaged, so how much the try has sent is unknown.
    """
    try:
        return msgspec.json.decode(note.read_bytes(), type=Produced)
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        reason = f"{note} cannot be read, and it says whether an earlier try has sent lines; no line was sent."
        raise UsageError(f"{reason} Delete it to send the whole file.") from error


def save(note: Path, produced: Produced) -> None:
    """Replace the note; it is on disk on return."""
    with replacing(note) as target:
        target.write(msgspec.json.encode(produced))
