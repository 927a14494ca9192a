"""Lines of a replay on their way from the log to a file: on disk in the order they came, given out in their own.

In memory are some tens of bytes a line; a replay has no more of them than a batch may have.
"""

import hashlib
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Self

import msgspec

from tidemill.api.reruns.input_file import recast

CHUNK_BYTES: Final = 1 << 20
CUSTOM_ID_CHARS_MAX: Final = 512
_MARK: Final = "@"
_KEPT_CHARS: Final = 440
"""Of an id that would become too long; a hash of it follows."""


class _Id(msgspec.Struct, frozen=True):
    custom_id: str


_ids = msgspec.json.Decoder(_Id)


@dataclass(kw_only=True)
class Source:
    """A batch whose lines were found."""

    number: int
    first_ms: int
    """When the oldest of its records was written."""
    seen: bytearray = field(default_factory=bytearray)
    """A bit for each line that was taken."""

    def take(self, index: int) -> bool:
        """Mark a line; False where it was there before."""
        byte, bit = index >> 3, 1 << (index & 7)
        if byte >= len(self.seen):
            self.seen.extend(bytes(byte + 1 - len(self.seen)))
        if self.seen[byte] & bit:
            return False
        self.seen[byte] |= bit
        return True


class Sources:
    """The batches of a range, and which of their lines were taken: an eighth of a byte a line."""

    def __init__(self) -> None:
        self.by_id: dict[str, Source] = {}
        self.lines = 0

    def take(self, batch_id: str, index: int, at_ms: int) -> Source | None:
        """The batch of a line that is new; None for one that the log has twice."""
        source = self.by_id.setdefault(batch_id, Source(number=len(self.by_id), first_ms=at_ms))
        source.first_ms = min(source.first_ms, at_ms)
        if not source.take(index):
            return None
        self.lines += 1
        return source


class ReplaySpool:
    """A context manager; its file goes with it."""

    def __init__(self) -> None:
        # Closed by `__exit__`, and gone then.
        self._file = tempfile.TemporaryFile(prefix="tidemill-replay-")  # noqa: SIM115
        self._columns = {name: array(code) for name, code in (("source", "I"), ("index", "I"), ("size", "I"))}
        self._starts = array("Q")
        self._owners: dict[bytes, int] = {}
        self.size = 0
        self.has_namesakes = False
        """Whether two batches have a line of one `custom_id`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, source: int, index: int, line: bytes) -> None:
        """Take a line of a batch; each once."""
        self._file.write(line)
        for name, value in (("source", source), ("index", index), ("size", len(line))):
            self._columns[name].append(value)
        self._starts.append(self.size)
        self.size += len(line)
        if (custom_id := _name(line)) is not None:
            digest = hashlib.blake2b(custom_id.encode(errors="surrogatepass"), digest_size=16).digest()
            self.has_namesakes |= self._owners.setdefault(digest, source) != source

    def chunks(self, sources: Sources, model: str | None) -> Iterator[bytes]:
        """All lines: batch by batch, the one with the oldest record first, each in its own order.

        Where two batches have a line of one `custom_id`, every id is given its batch's id as an ending.

        Args:
            sources: The batches.
            model: What to run the lines on; None leaves them.
        """
        ranked = sorted(sources.by_id.items(), key=lambda item: (item[1].first_ms, item[0]))
        ranks = {source.number: (rank, batch_id) for rank, (batch_id, source) in enumerate(ranked)}
        owners, indices, sizes = self._columns["source"], self._columns["index"], self._columns["size"]
        waiting: list[bytes] = []
        size = 0
        for place in sorted(range(len(indices)), key=lambda at: (ranks[owners[at]][0], indices[at])):
            self._file.seek(self._starts[place])
            line = self._file.read(sizes[place])
            name = _name(line) if self.has_namesakes else None
            own = None if name is None else renamed(name, ranks[owners[place]][1])
            waiting += (recast(line, model=model, custom_id=own), b"\n")
            size += len(line)
            if size >= CHUNK_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
        yield b"".join(waiting)


def renamed(custom_id: str, batch_id: str) -> str:
    """The id with its batch's id as an ending: two lines of different batches, or with different ids, differ."""
    if len(custom_id) + len(_MARK) + len(batch_id) > CUSTOM_ID_CHARS_MAX:
        digest = hashlib.blake2b(custom_id.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        custom_id = f"{custom_id[:_KEPT_CHARS]}~{digest}"
    return f"{custom_id}{_MARK}{batch_id}"


def _name(line: bytes) -> str | None:
    try:
        return _ids.decode(line).custom_id
    except (ValueError, msgspec.MsgspecError):
        return None
