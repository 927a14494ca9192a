"""How a file that is too large for one batch is cut into pieces, each of which is one.

The file is read once, a chunk at a time. A piece is a range of its bytes that begins with a line; together the
pieces are the file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from tidemill.client.runs.paths import InputFault
from tidemill.client.runs.unique_ids import UniqueIds
from tidemill.schemas.jsonl.lines import EMBEDDING_INPUTS_MAX, LINE_BYTES_MAX, Line, Splitter

READ_BYTES: Final = 1 << 20
FAULTS_MAX: Final = 10
"""Faulty lines that are named."""


class Bounds(msgspec.Struct, frozen=True):
    """What one batch may hold."""

    lines_max: int
    bytes_max: int
    inputs_max: int = EMBEDDING_INPUTS_MAX
    """Texts that are to be embedded, of all lines together."""
    line_bytes_max: int = LINE_BYTES_MAX


class Piece(msgspec.Struct, frozen=True):
    """A range of a file that is the input of one batch."""

    number: int
    """The first is 0."""
    start: int
    """Where it begins in the file."""
    end: int
    """Where the next one begins, or the file ends."""
    lines: int
    """Its lines, the blank ones left out."""
    line: int
    """The number of its first line in the file, which counts from 1."""


class Cutter:
    """Takes the places of a file's lines, in order, and gives pieces within bounds; holds one piece."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._number = 0
        self._start = 0
        self._lines = 0
        self._inputs = 0
        self._line = 1

    def take(self, offset: int, end: int, line: int, inputs: int = 1) -> Iterator[Piece]:
        """Add a line; gives the piece that ends before it, if one does.

        Args:
            offset: Where the line begins.
            end: Where it ends, its newline included.
            line: Its number in the file.
            inputs: How many texts it has to be embedded.
        """
        self._inputs += inputs
        is_full = (
            self._lines >= self._bounds.lines_max
            or end - self._start > self._bounds.bytes_max
            or self._inputs > self._bounds.inputs_max
        )
        # A line that is too large by itself has a piece of its own, for the service to refuse.
        if is_full and self._lines:
            yield self.finish(offset)
            self._number, self._start, self._lines, self._line = self._number + 1, offset, 0, line
            self._inputs = inputs
        self._lines += 1

    def finish(self, end: int) -> Piece:
        """The last piece, which ends where the file does."""
        return Piece(number=self._number, start=self._start, end=end, lines=self._lines, line=self._line)


class _Id(msgspec.Struct, frozen=True):
    custom_id: str


class _Body(msgspec.Struct, frozen=True):
    input: msgspec.Raw = msgspec.Raw(b'""')


class _Embedding(msgspec.Struct, frozen=True):
    body: _Body


_ids = msgspec.json.Decoder(_Id)
_embeddings = msgspec.json.Decoder(_Embedding)
_lists = msgspec.json.Decoder(list[msgspec.Raw])


def fits(source: Path, bounds: Bounds, *, is_embedding: bool = False) -> bool:
    """Whether a file is certainly small enough for one batch.

    Args:
        source: The file.
        bounds: What one batch may hold.
        is_embedding: Whether its lines ask for embeddings, which one line may do many times.

    Raises:
        InputFault: It cannot be read.
    """
    try:
        if source.stat().st_size > bounds.bytes_max:
            return False
        newlines, last = 0, b"\n"
        for chunk in _chunks(source):
            newlines, last = newlines + chunk.count(b"\n"), chunk[-1:]
        if newlines + (last != b"\n") > bounds.lines_max:
            return False
        return not is_embedding or sum(_inputs(line) for line in _lines(source, bounds)) <= bounds.inputs_max
    except OSError as error:
        raise InputFault(f"{source}: {error.strerror}") from error


def cut(source: Path, bounds: Bounds, digests: UniqueIds, *, is_embedding: bool = False) -> list[Piece]:
    """Cut a file, and see that each of its lines has a `custom_id` that no other one has.

    Args:
        source: The file.
        bounds: What one batch may hold.
        digests: Takes all the ids.
        is_embedding: As in `fits`.

    Raises:
        InputFault: It cannot be read, or lines of it are faulty; the first of them are named.
    """
    cutter = Cutter(bounds)
    pieces: list[Piece] = []
    faults: list[str] = []
    try:
        for line in _lines(source, bounds):
            end = line.offset + (bounds.line_bytes_max if line.data is None else len(line.data) + 1)
            inputs = _inputs(line) if is_embedding else 0
            pieces.extend(cutter.take(line.offset, end, line.number, inputs))
            if (fault := _fault(line, digests, bounds)) is not None:
                faults.append(f"line {line.number}: {fault}")
                if len(faults) == FAULTS_MAX:
                    break
        size = source.stat().st_size
    except OSError as error:
        raise InputFault(f"{source}: {error.strerror}") from error
    if not faults:
        faults = [
            f"line {double.line}: its custom_id is that of line {double.first}"
            for double, _ in zip(digests.doubles(), range(FAULTS_MAX), strict=False)
        ]
    if faults:
        raise InputFault("\n  ".join((f"{source} has faults; no line was run.", *faults)))
    return [*pieces, cutter.finish(size)]


def _fault(line: Line, digests: UniqueIds, bounds: Bounds) -> str | None:
    if line.data is None:
        return f"it is longer than {bounds.line_bytes_max:,} bytes"
    try:
        digests.add(_ids.decode(line.data).custom_id, line.number)
    except (ValueError, msgspec.MsgspecError) as error:
        return str(error)
    return None


def _inputs(line: Line) -> int:
    """How many texts a line has to be embedded: a list of integers is one text, as tokens."""
    try:
        given = bytes(_embeddings.decode(line.data or b"").body.input)
        texts = _lists.decode(given) if given.startswith(b"[") else []
    except (ValueError, msgspec.MsgspecError):
        # What is wrong with it is said elsewhere.
        return 1
    return len(texts) if texts and not bytes(texts[0])[:1].isdigit() else 1


def _lines(source: Path, bounds: Bounds) -> Iterator[Line]:
    splitter = Splitter(bounds.line_bytes_max)
    for chunk in _chunks(source):
        yield from splitter.feed(chunk)
    yield from splitter.finish()


def _chunks(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            yield chunk
