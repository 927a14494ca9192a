"""A store that writes to a folder, and reads from the folder and from another store."""

from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from pathlib import Path

from tidemill.schemas.ports import NotFound, Store
from tidemill.storage.directory import DirectoryStore


class RebuildError(Exception):
    """The files cannot be rebuilt; the text says why. Not an `OSError`, since a retry does not help."""


class OverlayStore(DirectoryStore):
    """A folder over another store, which supplies the objects that it lacks; `keys` are those of the folder."""

    def __init__(self, root: Path, below: Store) -> None:
        """Create the folder if needed; the caller closes the store below."""
        super().__init__(root)
        self.below = below

    async def write(self, key: str, chunks: AsyncIterable[bytes]) -> int:
        """Write to the folder."""
        try:
            return await super().write(key, chunks)
        except OSError as error:
            raise RebuildError(f"the scratch store cannot be written: {error}") from error

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """Read from the folder, else from the store below."""
        is_above = await self._is_above(key)
        found = super().read(key, start, end) if is_above else self.below.read(key, start, end)
        async with aclosing(found) as chunks:
            async for chunk in chunks:
                yield chunk

    async def size(self, key: str) -> int:
        """Size in bytes."""
        return await (super().size(key) if await self._is_above(key) else self.below.size(key))

    async def _is_above(self, key: str) -> bool:
        try:
            await super().size(key)
        except NotFound:
            return False
        return True
