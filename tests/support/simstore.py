"""A store and tables in memory, as one process of a simulated run reaches them."""

import asyncio
import functools
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence

from support.simtime import Process

from tidemill.schemas.log.part import PARTS_PREFIX
from tidemill.schemas.ports import NotFound, chained, once

READ_BYTES = 512
LATE_SECONDS_MAX = 23


class MemoryStore:
    """Objects that all processes share, as one of them reaches them."""

    def __init__(self, objects: dict[str, bytes], process: Process, refuses: Callable[[str], bool]) -> None:
        self._objects = objects
        self._process = process
        self._refuses = refuses

    async def write(self, key: str, chunks: AsyncIterable[bytes]) -> int:
        content = b"".join([chunk async for chunk in chunks])
        before = self._objects.get(key, content)
        # A part that is sealed twice has other bytes the second time.
        is_same = before == content or (before.startswith(b"TMS1") and len(before) == len(content))
        assert not key.startswith(PARTS_PREFIX) or is_same, f"{key} would be another part's"
        if self._refuses(key):
            # A write that failed may have taken effect.
            if len(content) % 2 and key.startswith(PARTS_PREFIX):
                asyncio.get_running_loop().call_later(
                    len(content) % LATE_SECONDS_MAX, self._objects.__setitem__, key, content
                )
            raise OSError("refused")
        # A request under way, or the last step of a frozen process, may take effect much later.
        await self._process.perform(functools.partial(self._objects.__setitem__, key, content), late=True)
        return len(content)

    async def create(self, key: str, content: bytes) -> bool:
        if key in self._objects:
            return False
        await self.write(key, once(content))
        return True

    async def join(self, key: str, sources: Sequence[str]) -> int:
        return await self.write(key, chained(self, sources))

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        await self._process.pass_time()
        if self._refuses(key):
            raise OSError("refused")
        if key not in self._objects:
            raise NotFound(key)
        content = self._objects[key][start:end]
        for at in range(0, len(content), READ_BYTES):
            self._process.check()
            yield content[at : at + READ_BYTES]

    async def size(self, key: str) -> int:
        return len(self._objects[key])

    async def free(self) -> int | None:
        return None

    async def delete(self, key: str) -> None:
        await self._process.perform(lambda: self._objects.pop(key, None))

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        for key in sorted(self._objects):
            if key.startswith(prefix):
                yield key

    async def close(self) -> None: ...


class MemoryTable:
    """One partition's share of a table; the changelog lacks writes that are not delivered."""

    def __init__(self, process: Process, changelog: dict[bytes, bytes]) -> None:
        self._process = process
        self._changelog = changelog
        self._local = dict(changelog)
        self._pending: list[tuple[bytes, bytes | None]] = []

    def get(self, key: bytes) -> bytes | None:
        return self._local.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._local[key] = value
        self._pending.append((key, value))

    def delete(self, key: bytes) -> None:
        self._local.pop(key, None)
        self._pending.append((key, None))

    def scan(self, prefix: bytes, *, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        for key in sorted(self._local):
            if key.startswith(prefix) and key >= after:
                yield key, self._local[key]

    async def delivered(self) -> None:
        while self._pending:
            # Like a request under way when its process ends; a later one has no effect.
            await self._process.perform(functools.partial(self._append, *self._pending[0]), late=True)
            self._pending.pop(0)

    def _append(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self._changelog.pop(key, None)
        else:
            self._changelog[key] = value
