"""A network that can be cut: TCP connections that pass through this process, each direction on its own.

A *way* leads from one process to one broker (or the store, or a server). A cut way behaves like a network that
loses packets: no data comes through, new connections are accepted and never answered, and data arrives once the
way heals. A way can also be closed (connections break, also new ones, and held-back data is lost), be slow, break
a connection in the middle of a message, or be half open: the server has lost its connections unnoticed.
"""

import asyncio
import random
import re
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Final, Self, TypeVar

from support.listening import stop_listening

T = TypeVar("T")

LOOPBACK: Final = "127.0.0.1"
CHUNK_BYTES: Final = 64 * 1024
CALL_SECONDS_MAX: Final = 10.0
OUT, BACK = "out", "back"
"""Directions: to the broker, and back."""


class _Passage:
    """Forwards one connection in one direction, chunk by chunk, as its way allows."""

    def __init__(self, way: "Way", direction: str) -> None:
        self._way = way
        self._direction = direction
        self.is_cut = False
        self.held = b""
        """Received data that may not pass yet."""

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            self.held = data
            if self._way.seconds:
                await asyncio.sleep(self._way.seconds)
            self.is_cut |= self._direction == OUT and self._way.catches(data)
            await self._way.opened(lambda: not self.is_cut and self._direction not in self._way.cuts)
            self.held = b""
            if self._way.take_truncation(self._direction):
                writer.write(data[: len(data) // 2])
                await writer.drain()
                return
            self._way.bytes[self._direction] += len(data)
            writer.write(data)
            await writer.drain()


class Way:
    """The route from one process to one server.

    Attributes:
        port: The port that the process connects to.
        bytes: Bytes that have passed, by direction.
        seconds: Delay of each chunk.
        cuts: The directions in which no data passes.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.bytes = {OUT: 0, BACK: 0}
        self.seconds = 0.0
        self.cuts: frozenset[str] = frozenset()
        self._target = target
        self._is_closed = False
        self._is_half_open = False
        self._caught: re.Pattern[bytes] | None = None
        self._truncated: str | None = None
        self._changed = asyncio.Condition()
        self._writers: weakref.WeakSet[asyncio.StreamWriter] = weakref.WeakSet()
        self._behind: weakref.WeakSet[asyncio.StreamWriter] = weakref.WeakSet()
        """The writers that lead to the server."""
        self._live: dict[asyncio.Task[None], tuple[_Passage, _Passage]] = {}

    async def listen(self) -> asyncio.Server:
        """Begin to accept connections."""
        server = await asyncio.start_server(self._connected, LOOPBACK, self.port)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def opened(self, is_open: Callable[[], bool]) -> None:
        """Wait until data may pass."""
        async with self._changed:
            await self._changed.wait_for(is_open)

    def take_truncation(self, direction: str) -> bool:
        """Whether to truncate this chunk; True once for each order."""
        if self._truncated == direction:
            self._truncated = None
            return True
        return False

    async def set(
        self,
        *,
        cuts: frozenset[str] = frozenset(),
        seconds: float = 0.0,
        closed: bool = False,
        half_open: bool = False,
        truncated: str | None = None,
        caught: re.Pattern[bytes] | None = None,
    ) -> None:
        """Set the state of the way; without arguments heal it, including single connections.

        Args:
            cuts: Directions in which no data passes.
            seconds: Delay of each chunk.
            closed: Break all connections, also new ones.
            half_open: Break the server's ends of the connections unnoticed by the process; new ones wait.
            truncated: Direction in which to truncate the next chunk, and end its connection.
            caught: Stall each connection at the first chunk to the server that matches this pattern.
        """
        self.cuts, self.seconds, self._is_closed, self._truncated = cuts, seconds, closed, truncated
        self._is_half_open, self._caught = half_open, caught
        if closed:
            for task in list(self._live):
                task.cancel()
        if half_open:
            for writer in list(self._behind):
                writer.transport.abort()
        if not (cuts or seconds or closed or half_open or truncated or caught):
            for passages in self._live.values():
                for passage in passages:
                    passage.is_cut = False
        async with self._changed:
            self._changed.notify_all()

    async def close(self) -> list["asyncio.Task[None]"]:
        """Break all connections; returns the tasks to await."""
        tasks = list(self._live)
        await self.set(closed=True)
        for writer in self._writers:
            writer.transport.abort()
        return tasks

    def catches(self, data: bytes) -> bool:
        """Whether a chunk matches the pattern at which to stall its connection."""
        return self._caught is not None and self._caught.search(data) is not None

    @property
    def has_caught(self) -> bool:
        """Whether the way holds back a chunk that matches."""
        return any(self.catches(out.held) for out, _ in list(self._live.values()))

    async def cut_one(self, chance: random.Random) -> None:
        """Stall one of the present connections in both directions."""
        if self._live:
            for passage in chance.choice(list(self._live.values())):
                passage.is_cut = True

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        passages = _Passage(self, OUT), _Passage(self, BACK)
        self._live[task] = passages
        self._writers.add(writer)
        try:
            if self._is_closed:
                return
            await self.opened(lambda: not self.cuts and not self._is_half_open)
            there, back = await asyncio.open_connection(LOOPBACK, self._target)
            self._writers.add(back)
            self._behind.add(back)
            try:
                pumps = {
                    asyncio.ensure_future(passages[0].pump(reader, back)),
                    asyncio.ensure_future(passages[1].pump(there, writer)),
                }
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)
            finally:
                back.close()
            await self.opened(lambda: not self._is_half_open)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._live.pop(task, None)
            writer.close()


class Network:
    """The ways of all processes; a context manager, on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._servers: list[asyncio.Server] = []
        self.ways: dict[tuple[str, str], Way] = {}
        """By the process and its target."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def lay(self, process: str, server: str, target: int) -> Way:
        """Create a way.

        Args:
            process: Name of the process.
            server: Name of the server.
            target: Port of the server.
        """
        return self.call(self._lay(process, server, target))

    def set(self, process: str = "", server: str = "", **how: Any) -> None:
        """Set the state (`Way.set`) of all ways of a process, to a server, or both."""
        for way in self.between(process, server):
            self.call(way.set(**how))

    def heal(self) -> None:
        """Heal all ways."""
        self.set()

    def between(self, process: str = "", server: str = "") -> list[Way]:
        """The ways of a process to a server, or to all servers."""
        return [way for (a, b), way in self.ways.items() if process in {"", a} and server in {"", b}]

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the network's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_SECONDS_MAX)

    async def _lay(self, process: str, server: str, target: int) -> Way:
        way = self.ways[process, server] = Way(target)
        self._servers.append(await way.listen())
        return way

    async def _close(self) -> None:
        await stop_listening(*self._servers)
        tasks = []
        for way in self.ways.values():
            tasks += await way.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A transport closes one iteration of the loop after the call.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
