"""Sorts the lines of a replay: keeps them on disk as they come, and returns them batch by batch in order.

It needs some tens of bytes of memory for a line; a replay has at most as many lines as a batch.
"""

import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Self

import msgspec

from tidemill.api.reruns.input_file import rewrite_line
from tidemill.schemas import decoded
from tidemill.schemas.bitmap import Bitmap
from tidemill.schemas.bounds import CUSTOM_ID_CHARS_MAX
from tidemill.schemas.jsonl.line import name_digest

CHUNK_BYTES: Final = 1 << 20
_MARK: Final = "@"
_KEPT_CHARS: Final = 440
"""Characters kept of an id that would be too long; its hash follows."""


class _Id(msgspec.Struct, frozen=True):
    custom_id: str


_ids = msgspec.json.Decoder(_Id)


@dataclass(kw_only=True)
class Source:
    """A batch with lines in the range."""

    number: int
    first_ms: int
    """When the oldest of its records was written."""
    seen: Bitmap = field(default_factory=Bitmap)
    """The lines that were added."""


class Sources:
    """The batches of a range, with their lines."""

    def __init__(self) -> None:
        self.by_id: dict[str, Source] = {}
        self.lines = 0

    def add(self, batch_id: str, index: int, at_ms: int) -> Source | None:
        """Add a line; returns its batch, or None if the line was added before."""
        source = self.by_id.setdefault(batch_id, Source(number=len(self.by_id), first_ms=at_ms))
        source.first_ms = min(source.first_ms, at_ms)
        if not source.seen.add(index):
            return None
        self.lines += 1
        return source


class ReplaySpool:
    """The lines on disk; a context manager that deletes its file on exit."""

    def __init__(self) -> None:
        # `__exit__` closes and deletes it.
        self._file = tempfile.TemporaryFile(prefix="tidemill-replay-")  # noqa: SIM115
        self._columns = {name: array(code) for name, code in (("source", "I"), ("index", "I"), ("size", "I"))}
        self._starts = array("Q")
        self._owners: dict[bytes, int] = {}
        self.size = 0
        self.has_shared_ids = False
        """Whether two batches have a line with the same `custom_id`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, source: int, index: int, line: bytes) -> None:
        """Add a line of a batch; each once."""
        self._file.write(line)
        for name, value in (("source", source), ("index", index), ("size", len(line))):
            self._columns[name].append(value)
        self._starts.append(self.size)
        self.size += len(line)
        if (custom_id := _custom_id(line)) is not None:
            self.has_shared_ids |= self._owners.setdefault(name_digest(custom_id), source) != source

    def chunks(self, sources: Sources, model: str | None) -> Iterator[bytes]:
        """All lines, batch by batch, the batch with the oldest record first; with a model, on that model.

        If two batches have a line with the same `custom_id`, every id gets the id of its batch as a suffix.
        """
        ranked = sorted(sources.by_id.items(), key=lambda item: (item[1].first_ms, item[0]))
        ranks = {source.number: (rank, batch_id) for rank, (batch_id, source) in enumerate(ranked)}
        owners, indices, sizes = self._columns["source"], self._columns["index"], self._columns["size"]
        waiting: list[bytes] = []
        size = 0
        for place in sorted(range(len(indices)), key=lambda at: (ranks[owners[at]][0], indices[at])):
            self._file.seek(self._starts[place])
            line = self._file.read(sizes[place])
            name = _custom_id(line) if self.has_shared_ids else None
            own = None if name is None else renamed(name, ranks[owners[place]][1])
            waiting += (rewrite_line(line, model=model, custom_id=own), b"\n")
            size += len(line)
            if size >= CHUNK_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
        yield b"".join(waiting)


def renamed(custom_id: str, batch_id: str) -> str:
    """The id with the id of its batch as a suffix; unique among all lines of a range."""
    if len(custom_id) + len(_MARK) + len(batch_id) > CUSTOM_ID_CHARS_MAX:
        custom_id = f"{custom_id[:_KEPT_CHARS]}~{name_digest(custom_id).hex()}"
    return f"{custom_id}{_MARK}{batch_id}"


def _custom_id(line: bytes) -> str | None:
    return None if (found := decoded(_ids, line)) is None else found.custom_id
