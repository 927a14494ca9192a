"""Counts and times the operations of a store, and notices a store that is gone as a whole."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from time import monotonic

from tidemill import metrics
from tidemill.schemas.ports import NotFound, Store
from tidemill.storage.owner import KEY, Guard

_READ = metrics.STORE_BYTES.labels("read")
_WRITTEN = metrics.STORE_BYTES.labels("written")


class MeteredStore:
    """A store, and its metrics; see `Store`."""

    def __init__(self, store: Store, *, identity: Callable[[], Awaitable[str]] | None = None) -> None:
        """Take a store; with the `identity` of a log, see `open_store`."""
        self._store = store
        self._guard = None if identity is None else Guard(store, identity)

    async def write(self, key: str, chunks: AsyncIterable[bytes]) -> int:
        """See `Store.write`; the time includes that of `chunks`."""
        with _metered("write"):
            size = await self._store.write(key, chunks)
        _WRITTEN.inc(size)
        return size

    async def create(self, key: str, content: bytes) -> bool:
        """See `Store.create`."""
        with _metered("create"):
            is_new = await self._store.create(key, content)
        _WRITTEN.inc(len(content) if is_new else 0)
        return is_new

    async def join(self, key: str, sources: Sequence[str]) -> int:
        """See `Store.join`."""
        async with self._there(key):
            with _metered("join"):
                return await self._store.join(key, sources)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """See `Store.read`."""
        async with aclosing(self._store.read(key, start, end)) as chunks:
            async with self._there(key):
                with _metered("read"):
                    chunk = await anext(chunks, None)
            while chunk is not None:
                _READ.inc(len(chunk))
                yield chunk
                chunk = await anext(chunks, None)

    async def size(self, key: str) -> int:
        """See `Store.size`."""
        async with self._there(key):
            with _metered("size"):
                return await self._store.size(key)

    @asynccontextmanager
    async def _there(self, key: str) -> AsyncIterator[None]:
        """Raise `StoreFault` for an object that is missing in a store that the log does not own."""
        try:
            yield
        except NotFound:
            if self._guard is not None and key != KEY:
                await self._guard.check(deletes=False)
            raise

    async def link(self, key: str, disposition: str) -> str | None:
        """See `Store.link`."""
        with _metered("link"):
            return await self._store.link(key, disposition)

    async def free(self) -> int | None:
        """See `Store.free`."""
        with _metered("free"):
            return await self._store.free()

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""
        if self._guard is not None:
            await self._guard.check(deletes=True)
        with _metered("delete"):
            await self._store.delete(key)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """See `Store.keys`."""
        keys = self._store.keys(prefix)
        with _metered("keys"):
            key = await anext(keys, None)
        while key is not None:
            yield key
            key = await anext(keys, None)

    async def close(self) -> None:
        """See `Store.close`."""
        await self._store.close()


@contextmanager
def _metered(operation: str) -> Iterator[None]:
    begun, result = monotonic(), "error"
    try:
        yield
        result = "ok"
    except NotFound:
        result = "missing"
        raise
    finally:
        metrics.STORE_REQUESTS.labels(operation, result).inc()
        metrics.STORE_DURATION.labels(operation).observe(monotonic() - begun)
