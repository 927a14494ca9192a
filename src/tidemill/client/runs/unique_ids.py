"""Whether any `custom_id` stands twice in a file of any size, with bounded memory.

Of each id 16 bytes of its hash and 8 of its line number go to one of `BUCKETS` files, chosen by the hash, so two
equal ids meet in the same file. Then each file is looked at by itself. In memory are what waits to be written
(some MB) and in the end one file: 1/256 of the ids, which is 4,000 of a million and 400,000 of a hundred million.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BUCKETS: Final = 256
BUFFER_BYTES_MAX: Final = 16 << 10
"""Of each bucket, before it is written."""
DIGEST_BYTES: Final = 16
_ENTRY: Final = struct.Struct(f"<{DIGEST_BYTES}sQ")


@dataclass(frozen=True, kw_only=True)
class DuplicateId:
    """An id that stands in two lines."""

    first: int
    line: int


class UniqueIds:
    """The ids of one file, in files of a folder."""

    def __init__(self, folder: Path) -> None:
        """Begin with none; what lies in the folder is of an earlier try and goes."""
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._buffers = [bytearray() for _ in range(BUCKETS)]
        self.clear()

    def add(self, custom_id: str, line: int) -> None:
        """Take the id of a line."""
        digest = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
        buffer = self._buffers[digest[0]]
        buffer += _ENTRY.pack(digest, line)
        if len(buffer) >= BUFFER_BYTES_MAX:
            self._write(digest[0])

    def doubles(self) -> Iterator[DuplicateId]:
        """The ids that were there before, in no order."""
        for bucket in range(BUCKETS):
            self._write(bucket)
            path = self._path(bucket)
            seen: dict[bytes, int] = {}
            for digest, line in _ENTRY.iter_unpack(path.read_bytes()) if path.exists() else ():
                if (first := seen.setdefault(digest, line)) != line:
                    yield DuplicateId(first=first, line=line)

    def clear(self) -> None:
        """Remove the files."""
        for bucket in range(BUCKETS):
            self._path(bucket).unlink(missing_ok=True)

    def _write(self, bucket: int) -> None:
        if self._buffers[bucket]:
            with self._path(bucket).open("ab") as file:
                file.write(self._buffers[bucket])
            self._buffers[bucket].clear()

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:02x}.ids"
