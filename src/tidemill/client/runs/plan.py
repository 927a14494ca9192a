"""Splits a file that exceeds one batch into pieces that each fit.

The file is read once, a chunk at a time. A piece is a range of its bytes that begins with a line; all pieces
together are the file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from tidemill.client.errors import UsageError
from tidemill.client.http.client import Bounds
from tidemill.client.runs.paths import fault_of
from tidemill.client.runs.unique_ids import UniqueIds
from tidemill.schemas.endpoints import ENDPOINTS, UNKNOWN
from tidemill.schemas.jsonl.lines import Line, Splitter

READ_BYTES: Final = 1 << 20
FAULTS_MAX: Final = 10
"""Faulty lines to report."""


class Piece(msgspec.Struct, frozen=True):
    """A byte range of the file, the input of one batch."""

    number: int
    """From 0."""
    start: int
    """Offset of its first byte."""
    end: int
    """Offset after its last byte."""
    lines: int
    """Number of lines that are not blank."""
    line: int
    """Number of its first line in the file, from 1."""


class Cutter:
    """Groups the lines of a file, in order, into pieces within bounds."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._number = 0
        self._start = 0
        self._lines = 0
        self._inputs = 0
        self._line = 1

    def add(self, offset: int, end: int, line: int, inputs: int = 1) -> Iterator[Piece]:
        """Add a line; yields the piece that ends before it, if one does.

        Args:
            offset: Offset of the line in the file.
            end: Offset after its newline.
            line: Number of the line in the file.
            inputs: Number of texts to embed in it.
        """
        self._inputs += inputs
        is_full = (
            self._lines >= self._bounds.lines_max
            or end - self._start > self._bounds.bytes_max
            or self._inputs > self._bounds.inputs_max
        )
        # A line that exceeds the bounds gets a piece of its own, which the service rejects with a reason.
        if is_full and self._lines:
            yield self.finish(offset)
            self._number, self._start, self._lines, self._line = self._number + 1, offset, 0, line
            self._inputs = inputs
        self._lines += 1

    def finish(self, end: int) -> Piece:
        """The last piece, which ends with the file."""
        return Piece(number=self._number, start=self._start, end=end, lines=self._lines, line=self._line)


class _Id(msgspec.Struct, frozen=True):
    custom_id: str


class _Request(msgspec.Struct, frozen=True):
    body: dict[str, msgspec.Raw]


_ids = msgspec.json.Decoder(_Id)
_requests = msgspec.json.Decoder(_Request)
_lists = msgspec.json.Decoder(list[msgspec.Raw])


def fits(source: Path, bounds: Bounds, *, endpoint: str) -> bool:
    """Whether a file certainly fits into one batch.

    Args:
        source: The file.
        bounds: What one batch may hold.
        endpoint: What its lines ask for.

    Raises:
        UsageError: The file cannot be read.
    """
    try:
        if source.stat().st_size > bounds.bytes_max:
            return False
        newlines, last = 0, b"\n"
        for chunk in _chunks(source):
            newlines, last = newlines + chunk.count(b"\n"), chunk[-1:]
        if newlines + (last != b"\n") > bounds.lines_max:
            return False
        if ENDPOINTS.get(endpoint, UNKNOWN).generates:
            return True
        return sum(_inputs(line, endpoint) for line in _lines(source, bounds)) <= bounds.inputs_max
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}") from error


def cut(source: Path, bounds: Bounds, digests: UniqueIds, *, endpoint: str) -> list[Piece]:
    """Split a file, and check that each line has a `custom_id` of its own.

    Args:
        source: The file.
        bounds: What one batch may hold.
        digests: Collects the ids.
        endpoint: See `fits`.

    Raises:
        UsageError: The file cannot be read, or has faulty lines; the text names the first ones.
    """
    cutter = Cutter(bounds)
    pieces: list[Piece] = []
    faults: list[str] = []
    try:
        for line in _lines(source, bounds):
            end = line.offset + (bounds.line_bytes_max if line.data is None else len(line.data) + 1)
            inputs = 0 if ENDPOINTS.get(endpoint, UNKNOWN).generates else _inputs(line, endpoint)
            pieces.extend(cutter.add(line.offset, end, line.number, inputs))
            if (fault := _fault(line, digests, bounds)) is not None:
                faults.append(f"line {line.number}: {fault}")
                if len(faults) == FAULTS_MAX:
                    break
        size = source.stat().st_size
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}") from error
    if not faults:
        faults = [
            f"line {double.line}: it has the custom_id of line {double.first}"
            for double, _ in zip(digests.doubles(), range(FAULTS_MAX), strict=False)
        ]
    if faults:
        raise UsageError("\n  ".join((f"{source} has faulty lines; no line was run.", *faults)))
    return [*pieces, cutter.finish(size)]


def _fault(line: Line, digests: UniqueIds, bounds: Bounds) -> str | None:
    if line.data is None:
        return f"it is longer than {bounds.line_bytes_max:,} bytes"
    try:
        line.data.decode()
        digests.add(_ids.decode(line.data).custom_id, line.number)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        return fault_of(line.data, error)
    return None


def _inputs(line: Line, endpoint: str) -> int:
    """Number of texts in the prompt of a line; a list of integers is one text, as tokens."""
    try:
        given = bytes(_requests.decode(line.data or b"").body[ENDPOINTS.get(endpoint, UNKNOWN).prompt])
        texts = _lists.decode(given) if given.startswith(b"[") else []
    except (ValueError, KeyError, msgspec.MsgspecError):
        # `_fault` reports it.
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
