"""Splits a file that exceeds one batch into pieces that each fit.

The file is read once, a chunk at a time. A piece is a range of its bytes that begins with a line; all pieces
together are the file.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from tidemill.client.errors import UsageError
from tidemill.client.files import input_lines
from tidemill.client.http.client import Bounds
from tidemill.client.runs.paths import fault_of
from tidemill.client.runs.unique_ids import UniqueIds
from tidemill.schemas.endpoints import ENDPOINTS, UNKNOWN
from tidemill.schemas.jsonl.lines import Line

FAULTS_MAX: Final = 10
"""Faulty lines to report."""


class Piece(msgspec.Struct, frozen=True):
    """A byte range of the file, the input of one batch."""

    number: int
    """Its number, from 0."""
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
    """Whether a file is one piece.

    Args:
        source: The file.
        bounds: Limits of one batch.
        endpoint: Endpoint of its lines.

    Raises:
        UsageError: The file cannot be read.
    """
    try:
        size = source.stat().st_size
        return size <= bounds.bytes_max and len(list(_pieces(source, bounds, endpoint, lambda _: True))) == 1
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}") from error


def cut(source: Path, bounds: Bounds, digests: UniqueIds, *, endpoint: str) -> list[Piece]:
    """Split a file, and check that each line has a `custom_id` of its own.

    Args:
        source: The file.
        bounds: Limits of one batch.
        digests: Collects the ids.
        endpoint: See `fits`.

    Raises:
        UsageError: The file cannot be read, or has faulty lines; the text names the first ones.
    """
    faults: list[str] = []

    def check(line: Line) -> bool:
        if (fault := _fault(line, digests, bounds)) is not None:
            faults.append(f"line {line.number}: {fault}")
        return len(faults) < FAULTS_MAX

    try:
        pieces = list(_pieces(source, bounds, endpoint, check))
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}") from error
    faults = faults or [
        f"line {duplicate.line}: it has the custom_id of line {duplicate.first}"
        for duplicate in itertools.islice(digests.duplicates(), FAULTS_MAX)
    ]
    if faults:
        raise UsageError("\n  ".join((f"{source} has faulty lines; no line was run.", *faults)))
    return pieces


def _pieces(source: Path, bounds: Bounds, endpoint: str, check: Callable[[Line], bool]) -> Iterator[Piece]:
    """The pieces of a file; ends after a line for which `check` returns False."""
    cutter, size = Cutter(bounds), source.stat().st_size
    embeds = ENDPOINTS.get(endpoint, UNKNOWN).embeds
    for line in input_lines(source, line_bytes_max=bounds.line_bytes_max):
        end = line.offset + (bounds.line_bytes_max if line.data is None else len(line.data) + 1)
        yield from cutter.add(line.offset, min(end, size), line.number, _inputs(line, endpoint) if embeds else 0)
        if not check(line):
            return
    yield cutter.finish(size)


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
