"""The `custom_id`s of a stream: each is remembered, in memory up to a bound and beyond it on disk."""

import hashlib
from pathlib import Path
from typing import Final

from tidemill.ingest.sqlite import Digests

IN_MEMORY_MAX: Final = 50_000
"""Of one stream; some 6 MB."""


class Ids:
    """A set of strings, to be asked and added to."""

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

    def __contains__(self, kept: object) -> bool:
        digest = _digest(kept)
        return digest in self._few or (self._many is not None and digest in self._many)

    def add(self, kept: str | bytes) -> None:
        """Remember one."""
        self._few.add(_digest(kept))
        if len(self._few) >= self._in_memory_max:
            if self._many is None:
                self._many = Digests(self._file)
            self._many.update(self._few)
            self._few.clear()

    def close(self) -> None:
        """Forget all of them."""
        self._few.clear()
        if self._many is not None:
            self._many.close()
            self._many = None


def _digest(kept: object) -> bytes:
    data = kept if isinstance(kept, bytes) else str(kept).encode(errors="surrogatepass")
    return hashlib.blake2b(data, digest_size=16).digest()
