"""Servers that come, change and go while two models call them, in virtual time."""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from support.simtime import SimulatedLoop, run

from tidemill.configuration.servers import Model, serving
from tidemill.configuration.servers import Server as Settings
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
from tidemill.processors.scheduling.prefix_groups import prefixes
from tidemill.schemas.log import codec

ENDPOINT = "/v1/chat/completions"
GOOD = Answer(200, b'{"choices":[{"finish_reason":"stop","message":{"content":"yes"}}]}')
CALL_SECONDS = 0.1
IN_FORCE_SECONDS = 2 * CALL_SECONDS
"""After this time the calls from before a change have ended, and others have taken their places."""


class Engines:
    """The servers themselves, by host; those in `down` refuse connections."""

    def __init__(self) -> None:
        self.down: set[str] = set()
        self.in_flight: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.lines: Counter[tuple[str, int]] = Counter()
        """How often each line was called."""
        self.keys: defaultdict[str, set[str]] = defaultdict(set)
        self.followed: list[set[tuple[str, int]]] = []

    async def post(
        self, url: str, headers: dict[str, str], body: bytes | memoryview, seconds: float, *_: Any
    ) -> Answer | FailureKind:
        del seconds
        host = url.split("/")[2]
        asked = orjson.loads(bytes(body))
        self.sent[host] += 1
        self.keys[host].add(headers.get("x-team", ""))
        if host in self.down:
            return FailureKind.CONNECT
        self.lines[asked["batch"], asked["n"]] += 1
        self.in_flight[host] += 1
        await asyncio.sleep(CALL_SECONDS)
        self.in_flight[host] -= 1
        return GOOD

    async def get(self, url: str, headers: dict[str, str], seconds: float, bytes_max: int) -> Answer:
        del url, headers, seconds, bytes_max
        return Answer(404, b"{}")

    def follow(self, trusts: Any, places: Any) -> None:
        del trusts
        self.followed.append(places)

    async def close(self) -> None: ...


class Log:
    """Takes results at once, and acknowledgements."""

    def __init__(self) -> None:
        self.failed = 0
        self.ends: Counter[str] = Counter()

    async def send(self, batch_id: str, value: bytes, headers: codec.Headers) -> None:
        marks = codec.lines_marks(headers, len(value))[1]
        self.ends[batch_id] += len(marks)
        self.failed += sum(mark.failed for mark in marks)

    def ack(self, token: Any) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class World:
    """A process of two models, `a` and `b`."""

    def __init__(self, loop: SimulatedLoop, *, prefix_bytes: int | None = None) -> None:
        self.loop = loop
        self.engines = Engines()
        self.log = Log()
        self.named: dict[str, Settings] = {}
        self.models: dict[str, Model] = {}
        self.prefix_bytes = prefix_bytes
        self.servers = Servers(loop.now, loop.time, client=self.engines)
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
                self.dispatchers[name] = self._dispatcher(name)
                self.dispatchers[name].set_part(1.0)

    def _dispatcher(self, name: str) -> Dispatcher:
        pool = self.servers.pools[name]
        store: Any = None
        caller = Caller(
            pool=pool, endpoint_probe=EndpointProbe(name, pool, self.engines), upstream=self.engines, store=store,
            forms=Forms(store, LineBudget()),
            clock=self.loop.now, seconds_max=30,
        )  # fmt: skip
        services = Services(
            budget=LineBudget(), outbox=self.log, store=store, closed=ClosedBatches(), clock=self.loop.now,
            chance=lambda: 0.5,
        )  # fmt: skip
        return Dispatcher(pool, caller, services, prefixes=prefixes(self.models[name], pool))

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
        """The server of this name."""
        return next(server for server in self.servers if server.name == name)

    async def end(self, *batches: str, lines: int, seconds: float = 600) -> None:
        """Wait for the ends of batches of so many lines; each line was called once, and none failed."""
        until = self.loop.time() + seconds
        while any(self.log.ends[batch] < lines for batch in batches):
            assert self.loop.time() < until, self.log.ends
            await asyncio.sleep(0.01)
        assert self.log.failed == 0
        assert {self.log.ends[batch] for batch in batches} == {lines}
        assert set(self.engines.lines.values()) == {1}


Make = Callable[..., World]


def simulated(case: Callable[[Make], Coroutine[Any, Any, None]]) -> None:
    """Run a case, which makes its worlds by its argument, and close them."""
    worlds: list[World] = []

    async def main(loop: SimulatedLoop) -> None:
        def make(**options: Any) -> World:
            worlds.append(World(loop, **options))
            return worlds[-1]

        try:
            await case(make)
        finally:
            for world in worlds:
                await asyncio.gather(*(dispatcher.close() for dispatcher in world.dispatchers.values()))
                await world.servers.close()

    run(main)


async def force(world: World) -> Counter[str]:
    """Apply the settings; the highest numbers of calls in flight once the change is in force."""
    world.apply()
    await asyncio.sleep(IN_FORCE_SECONDS)
    highest: Counter[str] = Counter()
    for _ in range(100):
        await asyncio.sleep(0.01)
        highest |= world.engines.in_flight
    return highest


def test_each_change_is_in_force_at_once_and_no_line_is_lost() -> None:
    """Limits, a drain, servers that come and go under calls in flight; with prefix groups and without."""

    async def case(make: Make) -> None:
        for prefix_bytes in (None, 64):
            world = make(prefix_bytes=prefix_bytes)
            world.server("gpu-1", max_in_flight=64)
            world.model("a", "gpu-1")
            world.model("b", "gpu-1")
            world.apply()
            for name in "ab":
                world.publish(name, name, 5_000)
            assert (await force(world))["gpu-1"] == 64
            server = world.found("gpu-1")
            world.server("gpu-1", max_in_flight=32, headers={"x-team": "new"})
            assert (await force(world))["gpu-1"] == 32
            world.server("gpu-2", max_in_flight=16)
            world.model("a", "gpu-1", "gpu-2")
            assert await force(world) == {"gpu-1": 32, "gpu-2": 16}
            world.server("gpu-1", max_in_flight=32, drain=True)
            assert await force(world) == {"gpu-2": 16}
            world.server("gpu-1", max_in_flight=64)
            world.model("b", "gpu-1", paused=True)
            world.apply()
            assert world.found("gpu-1") is server
            assert server.found(world.loop.time()) == 64, "what was found before the limit was halved"
            assert await force(world) == {"gpu-1": 64, "gpu-2": 16}
            del world.named["gpu-2"]
            world.model("a", "gpu-1")
            world.model("b", "gpu-1")
            in_flight = world.engines.in_flight["gpu-2"]
            sent = world.engines.sent["gpu-2"]
            world.apply()
            assert world.found("gpu-2").in_flight == in_flight > 0
            assert ("gpu-2", 80) not in world.engines.followed[-1]
            assert await force(world) == {"gpu-1": 64}
            assert world.engines.sent["gpu-2"] == sent
            world.apply()
            assert [one.name for one in world.servers] == ["gpu-1"]
            await world.end("a", "b", lines=5_000)
            assert world.engines.keys["gpu-1"] == {"", "new"}

    simulated(case)


def test_a_model_without_servers_waits_and_goes_on() -> None:
    """Its last server goes, and later another one comes; the other model has all of the server meanwhile."""

    async def case(make: Make) -> None:
        world = make(prefix_bytes=64)
        world.server("gpu-1", max_in_flight=32)
        for name in "ab":
            world.model(name, "gpu-1")
        world.apply()
        for name in "ab":
            world.publish(name, name, 4_000)
        await asyncio.sleep(1)
        model = world.models.pop("a")
        assert await force(world) == {"gpu-1": 32}
        before = world.log.ends["a"]
        await asyncio.sleep(5)
        assert world.log.ends["a"] == before
        world.server("gpu-3", max_in_flight=8)
        world.models["a"] = model.model_copy(update={"servers": ("gpu-3",)})
        assert await force(world) == {"gpu-1": 32, "gpu-3": 8}
        await world.end("a", "b", lines=4_000)

    simulated(case)


def test_models_that_come_to_share_a_server_share_it_fairly() -> None:
    """The clocks of their projects become one, and two again; both projects get half where they meet."""

    async def case(make: Make) -> None:
        world = make()
        for name in ("gpu-1", "gpu-2"):
            world.server(name, max_in_flight=32)
        world.model("a", "gpu-1")
        world.model("b", "gpu-2")
        world.apply()
        world.publish("a", "p-a", 40_000, project="p")
        await asyncio.sleep(10)
        world.publish("a", "q-a", 40_000, project="q")
        world.publish("b", "q-b", 40_000, project="q")
        world.model("b", "gpu-1")
        world.apply()
        assert world.servers.pools["a"].clocks is world.servers.pools["b"].clocks
        before = Counter(world.log.ends)
        await asyncio.sleep(20)
        gained = Counter(world.log.ends) - before
        assert 0.45 * gained.total() <= gained["p-a"] <= 0.55 * gained.total()
        assert gained["q-b"] > 0.1 * gained.total()
        world.model("b", "gpu-2")
        world.apply()
        assert world.servers.pools["a"].clocks is not world.servers.pools["b"].clocks
        assert not world.found("gpu-1").queue.is_shared
        before = Counter(world.log.ends)
        await asyncio.sleep(10)
        gained = Counter(world.log.ends) - before
        assert abs(gained["p-a"] - gained["q-a"]) <= 0.05 * gained["p-a"]
        assert gained["q-b"] >= 0.95 * 10 / CALL_SECONDS * 32, "it has a server of its own"

    simulated(case)


def test_changed_settings_end_the_pause_of_a_server() -> None:
    """A server that was down, perhaps for a wrong key, is probed at once; with another address, it is another."""

    async def case(make: Make) -> None:
        world = make()
        world.server("gpu-1", max_in_flight=32)
        world.model("a", "gpu-1")
        world.engines.down = {"gpu-1"}
        world.apply()
        world.publish("a", "a", 2_000)
        await asyncio.sleep(60)
        server = world.found("gpu-1")
        assert server.breaker.until > world.loop.time()
        sent = world.engines.sent["gpu-1"]
        assert sent < 40
        world.server("gpu-1", max_in_flight=32, headers={"x-team": "new"})
        world.apply()
        assert server.in_flight == 1, "a probe"
        world.server("gpu-1", url="http://gpu-9/v1", max_in_flight=32)
        world.apply()
        assert world.found("gpu-1").breaker.failures == 0
        await world.end("a", lines=2_000, seconds=60)

    simulated(case)


def test_processes_keep_their_parts_of_servers_that_change() -> None:
    """A new server, and one with a further model, get no more calls than before from all processes together."""

    async def case(make: Make) -> None:
        worlds = [make() for _ in range(2)]
        for world in worlds:
            world.server("gpu-1", max_in_flight=64, tokens_per_minute=60_000)
            world.model("a", "gpu-1")
            world.apply()
        for world, part in zip(worlds, (0.75, 0.25), strict=True):
            world.dispatchers["a"].set_part(part)
            world.server("gpu-2", max_in_flight=64)
            world.model("a", "gpu-1", "gpu-2", max_in_flight=96, tokens_per_minute=30_000)
            world.model("b", "gpu-1")
            world.servers.apply(serving(world.named, world.models))
        now = worlds[0].loop.time()
        of_a = [[world.found(name).parts.mean for name in ("gpu-1", "gpu-2")] for world in worlds]
        assert of_a == [[0.375, 0.75], [0.125, 0.25]], "no process has partitions of b yet"
        assert [world.servers.pools["a"].in_flight_max for world in worlds] == [72, 24]
        for world, part in zip(worlds, (0.5, 0.5), strict=True):
            world.servers.pools["b"].set_part(part, now)
        assert sum(world.found("gpu-1").parts.mean for world in worlds) == 1.0
        for world in worlds:
            del world.models["b"]
            world.apply()
        assert [world.found("gpu-1").parts.mean for world in worlds] == [0.75, 0.25]

    simulated(case)
