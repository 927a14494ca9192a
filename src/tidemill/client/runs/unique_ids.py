"""Finds duplicate `custom_id`s in a file of any size with bounded memory.

Each id becomes 16 bytes of hash and 8 bytes of line number in one of `BUCKETS` files, chosen by the hash, so equal
ids meet in the same file. Then the files are checked one by one. Memory holds the write buffers (some MB) and, at
the end, one file: 1/256 of the ids, 4,000 for a million lines and 400,000 for a hundred million.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BUCKETS: Final = 256
BUFFER_BYTES_MAX: Final = 16 << 10
"""Write buffer of each bucket."""
DIGEST_BYTES: Final = 16
_ENTRY: Final = struct.Struct(f"<{DIGEST_BYTES}sQ")


@dataclass(frozen=True, kw_only=True)
class DuplicateId:
    """Two lines with the same id."""

    first: int
    line: int


class UniqueIds:
    """The ids of one input, in bucket files of a folder."""

    def __init__(self, folder: Path) -> None:
        """Start empty; removes bucket files of an earlier attempt."""
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._buffers = [bytearray() for _ in range(BUCKETS)]
        self.clear()

    def add(self, custom_id: str, line: int) -> None:
        """Add the id of a line."""
        digest = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
        buffer = self._buffers[digest[0]]
        buffer += _ENTRY.pack(digest, line)
        if len(buffer) >= BUFFER_BYTES_MAX:
            self._write(digest[0])

    def duplicates(self) -> Iterator[DuplicateId]:
        """The lines whose id an earlier line has, in no particular order."""
        for bucket in range(BUCKETS):
            self._write(bucket)
            path = self._path(bucket)
            seen: dict[bytes, int] = {}
            for digest, line in _ENTRY.iter_unpack(path.read_bytes()) if path.exists() else ():
                if (first := seen.setdefault(digest, line)) != line:
                    yield DuplicateId(first=first, line=line)

    def clear(self) -> None:
        """Remove the bucket files."""
        for bucket in range(BUCKETS):
            self._path(bucket).unlink(missing_ok=True)

    def _write(self, bucket: int) -> None:
        if self._buffers[bucket]:
            with self._path(bucket).open("ab") as file:
                file.write(self._buffers[bucket])
            self._buffers[bucket].clear()

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:02x}.ids"
