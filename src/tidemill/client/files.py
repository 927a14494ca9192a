"""Reads the lines of an input; counts, hashes and joins result files."""

import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from tidemill.schemas.bounds import LARGE_BYTES_MAX
from tidemill.schemas.jsonl.lines import Line, Splitter
from tidemill.schemas.resources.batch import FileReceipt
from tidemill.storage.atomic_file import replacing

CHUNK_BYTES: Final = 1 << 20


def input_lines(
    source: Path, *, line_bytes_max: int = LARGE_BYTES_MAX, span: tuple[int, int] | None = None
) -> Iterator[Line]:
    """The lines of an input that are not blank, as ingest sees them; one above `line_bytes_max` has no data.

    A `span` has the first byte to read and the byte after the last one.

    Raises:
        OSError: The file cannot be read.
    """
    start, end = span or (0, sys.maxsize)
    splitter = Splitter(line_bytes_max)
    with source.open("rb") as file:
        file.seek(start)
        while chunk := file.read(min(CHUNK_BYTES, end - file.tell())):
            yield from splitter.feed(chunk)
    yield from splitter.finish()


def sha256_of(path: Path) -> str:
    """The hash of a file, in hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileCounter:
    """Counts lines and bytes of a file, and hashes it, as its content passes."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._lines = 0
        self.size = 0
        """Bytes so far."""

    def add(self, chunk: bytes) -> None:
        """Add the next bytes."""
        self._hash.update(chunk)
        self._lines += chunk.count(b"\n")
        self.size += len(chunk)

    @property
    def receipt(self) -> FileReceipt:
        """The counts and the hash so far."""
        return FileReceipt(lines=self._lines, bytes=self.size, sha256=self._hash.hexdigest())


def join(parts: Iterable[Path], target: Path) -> FileReceipt | None:
    """Concatenate files of whole lines, some of them missing; on an error the target stays as it was.

    Without a line the target is removed: a file of an earlier run would pass for the result of this one. Returns
    its receipt; None without a line.

    Raises:
        OSError: The disk is full, or a file cannot be read.
    """
    counter = FileCounter()
    with replacing(target) as file:
        for part in filter(Path.exists, parts):
            with part.open("rb") as content:
                while chunk := content.read(CHUNK_BYTES):
                    file.write(chunk)
                    counter.add(chunk)
    if counter.size:
        return counter.receipt
    target.unlink()
    return None
