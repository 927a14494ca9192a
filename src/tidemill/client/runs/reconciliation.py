"""Checks that the files of a batch hold each line of its input exactly once."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from tidemill.client.files import FileCounter, input_lines
from tidemill.schemas import UNREADABLE
from tidemill.schemas.bounds import LARGE_BYTES_MAX
from tidemill.schemas.jsonl.line import name_digest
from tidemill.schemas.resources.batch import FileReceipt, Receipt
from tidemill.wording import counted

EXAMPLES_MAX = 5


class _Line(msgspec.Struct, frozen=True):
    """The part of a line that is read, in any of the files."""

    custom_id: str


LINES: Final = msgspec.json.Decoder(_Line)


class Damaged(Exception):
    """A line is unreadable or an id is repeated in the input; the text names file and line."""


@dataclass(frozen=True, kw_only=True)
class Reconciliation:
    """Outcome of the check.

    Attributes:
        lines: Lines of the input.
        output: The output file; None without one.
        errors: The error file; None without one.
        missing: Input lines without a result.
        duplicate: Result lines whose id an earlier result has.
        foreign: Result lines whose id no input line has.
        examples: Ids of some of these.
    """

    lines: int
    output: FileReceipt | None
    errors: FileReceipt | None
    missing: int
    duplicate: int
    foreign: int
    examples: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether every input line has exactly one result, and every result an input line."""
        return not (self.missing or self.duplicate or self.foreign)

    def sentence(self) -> str:
        """The balance of lines, in one line."""
        output, errors = (file.lines if file else 0 for file in (self.output, self.errors))
        foreign = f", {self.foreign:,} foreign" if self.foreign else ""
        return (
            f"{counted(self.lines, 'line')} in = {output:,} out + {counted(errors, 'error')}, "
            f"{self.missing:,} missing, {self.duplicate:,} duplicate{foreign}"
        )


def describe(file: FileReceipt | None) -> str:
    """Lines, bytes and hash of a file, in words."""
    if file is None:
        return "no file"
    return f"{counted(file.lines, 'line')}, {file.bytes:,} bytes, SHA-256 {file.sha256}"


def differences(receipt: Receipt, output: FileReceipt | None, errors: FileReceipt | None) -> list[str]:
    """How the result files differ from the receipt, one difference per entry."""
    return [
        f"{name}: the receipt says {describe(promised)}, the file has {describe(found)}"
        for name, promised, found in (("output", receipt.output, output), ("errors", receipt.errors, errors))
        if promised != found
    ]


def reconcile(
    source: Path, output: Path | None, errors: Path | None, *, span: tuple[int, int] | None = None
) -> Reconciliation:
    """Compare the three files, reading a line at a time; a `span` of bytes of the input may count alone.

    Memory holds some 100 bytes for each id, so it grows with the number of lines, not with their size.

    Raises:
        Damaged: A line is incomplete or lacks a `custom_id`, or the input repeats an id.
        OSError: A file cannot be read.
    """
    expected = _expected(source, span)
    lines = len(expected)
    found: set[bytes] = set()
    odd = _Odd()
    receipts = [_matched(path, expected, found, odd) if path else None for path in (output, errors)]
    if expected and len(odd.examples) < EXAMPLES_MAX:
        missing = (name for name in _inputs(source, span) if name_digest(name) in expected)
        odd.examples += itertools.islice(missing, EXAMPLES_MAX - len(odd.examples))
    return Reconciliation(
        lines=lines,
        output=receipts[0],
        errors=receipts[1],
        missing=len(expected),
        duplicate=odd.duplicate,
        foreign=odd.foreign,
        examples=tuple(odd.examples),
    )


@dataclass
class _Odd:
    """Result lines without an input line of their own."""

    duplicate: int = 0
    foreign: int = 0
    examples: list[str] = field(default_factory=list)


def _expected(source: Path, span: tuple[int, int] | None) -> set[bytes]:
    """Digests of the ids of the input."""
    expected: set[bytes] = set()
    for name in _inputs(source, span):
        if (found := name_digest(name)) in expected:
            raise Damaged(f"{source}: the custom_id {name!r} occurs twice")
        expected.add(found)
    return expected


def _matched(path: Path, expected: set[bytes], found: set[bytes], odd: _Odd) -> FileReceipt:
    """Move the ids of a result file from the expected to the found ones; returns the receipt of the file."""
    count = FileCounter()
    for name, line in _results(path):
        count.add(line)
        key = name_digest(name)
        if key in expected:
            expected.discard(key)
            found.add(key)
            continue
        odd.duplicate += key in found
        odd.foreign += key not in found
        if len(odd.examples) < EXAMPLES_MAX:
            odd.examples.append(name)
    return count.receipt


def _inputs(path: Path, span: tuple[int, int] | None) -> Iterator[str]:
    """The id of each line of an input."""
    for line in input_lines(path, span=span):
        yield _id(path, line.number, line.data or b"")


def _results(path: Path) -> Iterator[tuple[str, bytes]]:
    """The id of each line of a result file, with the line itself."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LARGE_BYTES_MAX), b""), start=1):
            if not line.endswith(b"\n"):
                raise Damaged(f"{path}, line {number}: it is incomplete")
            yield _id(path, number, line), line


def _id(path: Path, number: int, line: bytes) -> str:
    try:
        return LINES.decode(line).custom_id
    except UNREADABLE as error:
        raise Damaged(f"{path}, line {number}: {error}") from error
