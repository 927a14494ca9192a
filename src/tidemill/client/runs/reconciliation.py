"""Whether a batch's files hold each line of its input exactly once."""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from tidemill.schemas.bounds import LARGE_BYTES_MAX
from tidemill.schemas.resources.batch import FileReceipt, Receipt

EXAMPLES_MAX = 5
WHOLE = (0, sys.maxsize)
BOM = b"\xef\xbb\xbf"


class _Line(msgspec.Struct, frozen=True):
    """What is read of a line, of whichever file."""

    custom_id: str


_lines = msgspec.json.Decoder(_Line)


class Damaged(Exception):
    """A line cannot be read; the text names file and line."""


@dataclass(frozen=True, kw_only=True)
class Reconciliation:
    """What was found: lines of the input and of the two files, and what does not fit.

    Attributes:
        missing: Input lines that are in neither file.
        double: Result lines whose id was there before.
        foreign: Result lines whose id no input line has.
        examples: A few ids that do not fit.
    """

    lines: int
    output: FileReceipt | None
    errors: FileReceipt | None
    missing: int
    double: int
    foreign: int
    examples: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether every input line has exactly one result line, and no result line is left."""
        return not (self.missing or self.double or self.foreign)

    def disagrees(self, receipt: Receipt) -> list[str]:
        """Say in what the files differ from the receipt of the service, one fault an entry."""
        faults = []
        if receipt.lines != self.lines:
            faults.append(f"the receipt speaks of {receipt.lines:,} lines, there are {self.lines:,}")
        pairs = (("output", receipt.output, self.output), ("errors", receipt.errors, self.errors))
        for name, promised, found in pairs:
            if promised != found:
                faults.append(f"{name}: the receipt says {shown(promised)}, the file has {shown(found)}")
        return faults

    def sentence(self) -> str:
        """The one line that says it all."""
        output, errors = (file.lines if file else 0 for file in (self.output, self.errors))
        foreign = f", {self.foreign:,} foreign" if self.foreign else ""
        return (
            f"{_lines_of(self.lines)} in = {output:,} out + {errors:,} errors, "
            f"{self.missing:,} missing, {self.double:,} double{foreign}"
        )


def shown(file: FileReceipt | None) -> str:
    """A file in a few words."""
    if file is None:
        return "no file"
    return f"{_lines_of(file.lines)}, {file.bytes:,} bytes, SHA-256 {file.sha256}"


def _lines_of(count: int) -> str:
    return f"{count:,} {'line' if count == 1 else 'lines'}"


def reconcile(
    source: Path, output: Path | None, errors: Path | None, *, span: tuple[int, int] | None = None
) -> Reconciliation:
    """Read the three files, a line at a time.

    Args:
        source: The input.
        output: The output file, if there is one.
        errors: The error file, if there is one.
        span: Which bytes of the input count, from where a line begins to where one ends; else all.

    Of each id 16 bytes are kept, so memory grows with the number of lines, not with their size. What is
    still expected shrinks as it is found, and what was found is remembered to tell double from foreign.

    Raises:
        Damaged: A line is torn or has no `custom_id`, or the input has an id twice.
        OSError: A file cannot be read.
    """
    expected: set[bytes] = set()
    for name, _ in _ids(source, span or WHOLE):
        if (digest := _digest(name)) in expected:
            raise Damaged(f"{source}: the custom_id {name!r} stands there twice")
        expected.add(digest)
    lines = len(expected)
    found: set[bytes] = set()
    tally = {"double": 0, "foreign": 0}
    examples: list[str] = []
    receipts = []
    for path in (output, errors):
        count = _Count()
        for name, line in _ids(path) if path else ():
            count.add(line)
            digest = _digest(name)
            if digest in expected:
                expected.discard(digest)
                found.add(digest)
                continue
            tally["double" if digest in found else "foreign"] += 1
            if len(examples) < EXAMPLES_MAX:
                examples.append(name)
        receipts.append(count.receipt if path else None)
    if expected and len(examples) < EXAMPLES_MAX:
        missing = (name for name, _ in _ids(source, span or WHOLE) if _digest(name) in expected)
        examples += [name for name, _ in zip(missing, range(EXAMPLES_MAX - len(examples)), strict=False)]
    return Reconciliation(
        lines=lines,
        output=receipts[0],
        errors=receipts[1],
        missing=len(expected),
        examples=tuple(examples),
        **tally,
    )


class _Count:
    """Lines, bytes and hash of one file."""

    def __init__(self) -> None:
        self._lines = self._bytes = 0
        self._hash = hashlib.sha256()

    def add(self, line: bytes) -> Self:
        self._lines += 1
        self._bytes += len(line)
        self._hash.update(line)
        return self

    @property
    def receipt(self) -> FileReceipt:
        return FileReceipt(lines=self._lines, bytes=self._bytes, sha256=self._hash.hexdigest())


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _ids(path: Path, span: tuple[int, int] | None = None) -> Iterator[tuple[str, bytes]]:
    """Yield the id of each line with the line itself; blank lines and a mark at the start are an input's right.

    Args:
        path: The file.
        span: Of an input the bytes that count; None for a file of results.
    """
    is_input = span is not None
    start, end = span or WHOLE
    with path.open("rb") as file:
        file.seek(start)
        lines = iter(lambda: file.readline(LARGE_BYTES_MAX) if file.tell() < end else b"", b"")
        for number, line in enumerate(lines, start=1):
            text = line.removeprefix(BOM) if number == 1 and is_input else line
            if is_input and not text.strip():
                continue
            if not is_input and not line.endswith(b"\n"):
                raise Damaged(f"{path}, line {number}: it is torn off")
            try:
                yield _lines.decode(text).custom_id, line
            except (ValueError, RecursionError) as error:
                raise Damaged(f"{path}, line {number}: {error}") from error
