"""A store that writes to one store and reads from two."""

from collections.abc import AsyncIterable, AsyncIterator, Sequence

from tidemill.schemas.ports import NotFound, Store, chained


class OverlayStoreError(Exception):
    """The scratch store cannot be written. Not an `OSError`, since a retry does not help."""


class OverlayStore:
    """Two stores as one; see `ports.Store`. `close` closes neither.

    Args:
        above: Gets all writes.
        below: Serves reads of objects that are not above.
    """

    def __init__(self, above: Store, below: Store) -> None:
        self.above = above
        self.below = below

    async def write(self, key: str, chunks: AsyncIterable[bytes]) -> int:
        """Write above."""
        try:
            return await self.above.write(key, chunks)
        except OSError as error:
            raise OverlayStoreError(f"the scratch store cannot be written: {error}") from error

    async def join(self, key: str, sources: Sequence[str]) -> int:
        """Join objects of either store, above."""
        return await self.write(key, chained(self, sources))

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Read from above, else from below."""
        async for chunk in (await self._holder(key)).read(key, start, end):
            yield chunk

    async def size(self, key: str) -> int:
        """Size in bytes."""
        return await (await self._holder(key)).size(key)

    async def link(self, key: str, disposition: str) -> str | None:
        """Return None: no client reads this store."""
        del key, disposition
        return None

    async def free(self) -> int | None:
        """The free bytes above."""
        return await self.above.free()

    async def delete(self, key: str) -> None:
        """Remove above."""
        await self.above.delete(key)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """The keys above."""
        async for key in self.above.keys(prefix):
            yield key

    async def close(self) -> None:
        """Do nothing: the caller that opened the two closes them."""

    async def _holder(self, key: str) -> Store:
        try:
            await self.above.size(key)
        except NotFound:
            return self.below
        return self.above
