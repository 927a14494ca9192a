"""A process whose servers are added, changed and removed while models call them, in virtual time."""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from support.simtime import SimulatedLoop, run
from support.upstreams import Upstream

from tidemill.configuration.servers import Model
from tidemill.configuration.servers import Server as Settings
from tidemill.configuration.serving import serving
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.backends.server import Server
from tidemill.processors.backends.servers import Servers
from tidemill.processors.calls.caller import Caller
from tidemill.processors.calls.endpoint_probe import EndpointProbe
from tidemill.processors.calls.forms import Forms
from tidemill.processors.dispatcher import Dispatcher, Services
from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.memory_budget import LineBudget
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.window import Capacity, PartitionWindow
from tidemill.processors.scheduling.prefix_groups import Prefixes, prefixes
from tidemill.schemas.log import codec

ENDPOINT = "/v1/chat/completions"
GOOD = Answer(200, b'{"choices":[{"finish_reason":"stop","message":{"content":"yes"}}]}')
UNAVAILABLE = Answer(503, b"no upstream")
CALL_SECONDS = 0.1
IN_FORCE_SECONDS = 2 * CALL_SECONDS
"""After this time the calls from before a change have ended, and new calls have replaced them."""


class Engines(Upstream):
    """The servers themselves, by host; those in `down` refuse connections."""

    def __init__(self, call_seconds: float) -> None:
        self.call_seconds = call_seconds
        self.down: set[str] = set()
        self.starting: set[str] = set()
        """Those for which a gateway answers."""
        self.stopped: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        """Set where calls in flight break off."""
        self.in_flight: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.lines: Counter[tuple[str, int]] = Counter()
        """How often each line was called."""
        self.keys: defaultdict[str, set[str]] = defaultdict(set)
        self.hosts: set[str] = set()
        self.followed: list[set[tuple[str, int]]] = []

    async def post(
        self, url: str, headers: dict[str, str], body: bytes | memoryview, seconds: float, *_: Any
    ) -> Answer | FailureKind:
        del seconds
        host = url.split("/")[2]
        asked = orjson.loads(bytes(body))
        self.sent[host] += 1
        self.keys[host].add(headers.get("x-team", ""))
        self.hosts.add(headers.get("host", ""))
        if host in self.down:
            return FailureKind.CONNECT
        if host in self.starting:
            return UNAVAILABLE
        self.lines[asked["batch"], asked["n"]] += 1
        self.in_flight[host] += 1
        try:
            async with asyncio.timeout(self.call_seconds):
                await self.stopped[host].wait()
        except TimeoutError:
            return GOOD
        finally:
            self.in_flight[host] -= 1
        self.lines[asked["batch"], asked["n"]] -= 1
        return FailureKind.READ

    def stop(self, host: str) -> None:
        """Stop a server; its calls break off, and it refuses connections."""
        self.down.add(host)
        self.stopped[host].set()

    async def get(self, url: str, headers: dict[str, str], seconds: float, bytes_max: int) -> Answer:
        del url, headers, seconds, bytes_max
        return Answer(404, b"{}")

    def follow(self, trusts: Any, places: Any) -> None:
        del trusts
        self.followed.append(places)

    async def close(self) -> None: ...


class Log:
    """Takes acknowledgements, and results while it has room."""

    def __init__(self) -> None:
        self.failed = 0
        self.ends: Counter[str] = Counter()
        self.room = asyncio.Event()
        self.room.set()

    async def send(self, batch_id: str, value: bytes, headers: codec.Headers) -> None:
        await self.room.wait()
        marks = codec.lines_marks(headers, len(value))[1]
        self.ends[batch_id] += len(marks)
        self.failed += sum(mark.failed for mark in marks)

    def ack(self, token: Any) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Resolver:
    """A resolver of names."""

    def __init__(self) -> None:
        self.answer: list[str] | OSError = []
        self.seconds = 0.0
        self.asking = self.asked = 0

    async def lookup(self, host: str, port: int) -> list[str]:
        assert (host, port) == ("gpu", 8000)
        self.asked += 1
        self.asking += 1
        assert self.asking == 1, "one lookup at a time"
        await asyncio.sleep(self.seconds)
        self.asking -= 1
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


def dispatcher(
    name: str, pool: BackendPool, upstream: Any, log: Log, loop: SimulatedLoop, *, prefixes: Prefixes | None = None
) -> Dispatcher:
    """The dispatcher of a model."""
    store: Any = None
    caller = Caller(
        pool=pool, endpoint_probe=EndpointProbe(name, pool, upstream), upstream=upstream, store=store,
        forms=Forms(store, LineBudget()), clock=loop.now, seconds_max=30,
    )  # fmt: skip
    services = Services(
        budget=LineBudget(), outbox=log, store=store, closed=ClosedBatches(), clock=loop.now, chance=lambda: 0.5
    )
    return Dispatcher(caller, services, prefixes=prefixes)


class World:
    """A process of two models, `a` and `b`."""

    def __init__(
        self, loop: SimulatedLoop, *, prefix_bytes: int | None = None, call_seconds: float = CALL_SECONDS
    ) -> None:
        self.loop = loop
        self.engines = Engines(call_seconds)
        self.log = Log()
        self.named: dict[str, Settings] = {}
        self.models: dict[str, Model] = {}
        self.prefix_bytes = prefix_bytes
        self.resolver = Resolver()
        self.servers = Servers(loop.now, loop.time, client=self.engines, lookup=self.resolver.lookup)
        self.dispatchers: dict[str, Dispatcher] = {}

    def server(self, name: str, **settings: object) -> None:
        """Add a server, or change its settings."""
        self.named[name] = Settings.model_validate({"url": f"http://{name}/v1", "metrics": False, **settings})

    def model(self, name: str, *servers: str, **settings: object) -> None:
        """Add a model, or change its servers."""
        self.models[name] = Model.model_validate(
            {"servers": servers, "prefix_bytes": self.prefix_bytes, **settings}
        )

    def apply(self) -> None:
        """Let the process follow the settings."""
        self.servers.apply(serving(self.named, self.models))
        for name in self.models:
            if name not in self.dispatchers:
                pool = self.servers.pools[name]
                found = prefixes(self.models[name], pool)
                self.dispatchers[name] = dispatcher(name, pool, self.engines, self.log, self.loop, prefixes=found)
                self.dispatchers[name].set_part(1.0)

    def publish(self, model: str, batch: str, lines: int, *, project: str = "p") -> None:
        """A batch arrives."""
        window = PartitionWindow(self.log, Capacity(lines_max=1_000_000))
        texts = [
            json.dumps(
                {
                    "custom_id": str(n),
                    "body": {"model": model, "batch": batch, "n": n, "messages": f"{n // 50:090}"},
                }
            ).encode()
            for n in range(lines)
        ]
        deadline = int(self.loop.now() + 86_400)
        head = codec.RequestHead(batch_id=batch, project=project, first=0, deadline=deadline, url=ENDPOINT)
        self.dispatchers[model].enqueue(window.admit(0, lines, 1), head, texts)

    def found(self, name: str) -> Server:
        """The present server of this name."""
        return [server for server in self.servers if server.name == name][-1]

    async def end(self, *batches: str, lines: int, seconds: float = 600) -> None:
        """Wait until batches with these numbers of lines have ended; each line was called once, and succeeded."""
        until = self.loop.time() + seconds
        while any(self.log.ends[batch] < lines for batch in batches):
            assert self.loop.time() < until, self.log.ends
            await asyncio.sleep(0.01)
        assert self.log.failed == 0
        assert {self.log.ends[batch] for batch in batches} == {lines}
        assert set(self.engines.lines.values()) == {1}

    async def close(self) -> None:
        """End everything."""
        await asyncio.gather(*(dispatcher.close() for dispatcher in self.dispatchers.values()))
        await self.servers.close()


Make = Callable[..., World]


def simulated(case: Callable[[Any], Coroutine[Any, Any, None]], kind: Callable[..., Any] = World) -> None:
    """Run a case, which makes worlds with its argument, and close them."""
    worlds: list[Any] = []

    async def main(loop: SimulatedLoop) -> None:
        def make(*arguments: Any, **options: Any) -> Any:
            worlds.append(kind(loop, *arguments, **options))
            return worlds[-1]

        try:
            await case(make)
        finally:
            for world in worlds:
                await world.close()

    run(main)


async def force(world: World) -> Counter[str]:
    """Apply the settings; returns the highest numbers of calls in flight after the change took effect."""
    world.apply()
    await asyncio.sleep(IN_FORCE_SECONDS)
    highest: Counter[str] = Counter()
    for _ in range(100):
        await asyncio.sleep(0.01)
        highest |= world.engines.in_flight
    return highest
