"""The `custom_id`s of a stream: each is remembered, in memory up to a bound and beyond it on disk."""

import hashlib
from pathlib import Path
from typing import Final

from tidemill.ingest.sqlite import Digests

IN_MEMORY_MAX: Final = 50_000
"""Of one stream; some 6 MB."""


class SeenIds:
    """A set of strings (`ingest/files/validation.py`, Seen)."""

    def __init__(self, file: Path, in_memory_max: int = IN_MEMORY_MAX) -> None:
        """Begin with none.

        Args:
            file: Where those beyond the bound are kept; it holds nothing that outlives this object.
            in_memory_max: The bound.
        """
        self._file = file
        self._in_memory_max = in_memory_max
        self._few: set[bytes] = set()
        self._many: Digests | None = None

    def setdefault(self, kept: str | bytes, number: int) -> int:
        """Remember one; 0 where it is remembered already, else `number`."""
        digest = _digest(kept)
        if digest in self._few or (self._many is not None and digest in self._many):
            return 0
        self._few.add(digest)
        if len(self._few) >= self._in_memory_max:
            if self._many is None:
                self._many = Digests(self._file)
            self._many.update(self._few)
            self._few.clear()
        return number

    def close(self) -> None:
        """Forget all of them."""
        self._few.clear()
        if self._many is not None:
            self._many.close()
            self._many = None


def _digest(kept: str | bytes) -> bytes:
    data = kept if isinstance(kept, bytes) else kept.encode(errors="surrogatepass")
    return hashlib.blake2b(data, digest_size=16).digest()
