"""Several models on one server, each with its own dispatcher, in virtual time."""

import asyncio
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable

import orjson
import pytest
from support import servers_at_work
from support.servers import server as make_server
from support.servers_at_work import ENDPOINT, GOOD, Log, dispatcher
from support.simtime import SimulatedLoop
from support.upstreams import Upstream

from tidemill.processors.backends.backend import Backend
from tidemill.processors.backends.clocks import TurnClocks
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.failures import Answer
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit
from tidemill.processors.limits.server_metrics import ServerMetrics
from tidemill.processors.partitions.window import Capacity, PartitionWindow
from tidemill.schemas.log import codec

FULL = Answer(429, b'{"error":{"message":"too many"}}')
UNKNOWN = Answer(404, b'{"error":{"message":"no such model"}}')
CAPACITY = 64
CALL_SECONDS = 0.1
DAY_SECONDS = 86_400


class Engine(Upstream):
    """The server: calls beyond its capacity queue, or are refused. `lacks` are models that it does not know."""

    def __init__(self, *, queues: bool) -> None:
        self.queues = queues
        self.lacks: set[str] = set()
        self.in_flight = self.in_flight_max = 0
        self.sent: Counter[str] = Counter()
        self.refused = 0
        self.answered: list[tuple[str, str, float]] = []
        """Model, project and time of each answer."""
        self._places = asyncio.Semaphore(CAPACITY)

    async def post(
        self, url: str, headers: dict[str, str], body: bytes | memoryview, seconds: float, more: bytes = b""
    ) -> Answer:
        del url, headers, seconds, more
        asked = orjson.loads(bytes(body))
        model = asked["model"]
        self.sent[model] += 1
        if model in self.lacks:
            await asyncio.sleep(0.002)
            return UNKNOWN
        if self._places.locked() and not self.queues:
            self.refused += 1
            await asyncio.sleep(0.001)
            return FULL
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight, self.in_flight_max)
        async with self._places:
            await asyncio.sleep(CALL_SECONDS)
        self.in_flight -= 1
        self.answered.append((model, asked.get("project", ""), asyncio.get_running_loop().time()))
        return GOOD

    async def get(self, url: str, headers: dict[str, str], seconds: float, bytes_max: int) -> Answer:
        del url, headers, seconds, bytes_max
        return Answer(404, b"{}")

    async def close(self) -> None: ...


class World:
    """One server, and the dispatchers of its models."""

    def __init__(
        self,
        loop: SimulatedLoop,
        names: Iterable[str],
        *,
        queues: bool = True,
        calls_max: int = CAPACITY,
        unacknowledged_max: int = CAPACITY // 4,
    ) -> None:
        self.loop = loop
        self.engine = Engine(queues=queues)
        self.log = Log()
        self.server = make_server(
            "http://gpu/v1",
            ConcurrencyLimit(calls_max),
            calls_max=calls_max,
            unacknowledged_max=unacknowledged_max,
        )
        self.clocks = TurnClocks()
        self.models = {
            name: dispatcher(
                name, BackendPool([Backend(self.server)], name, clocks=self.clocks), self.engine, self.log, loop
            )
            for name in names
        }

    async def close(self) -> None:
        """End everything."""
        await asyncio.gather(*(model.close() for model in self.models.values()))

    def publish(
        self, model: str, batch: str, lines: int, *, project: str = "p", seconds: float = DAY_SECONDS
    ) -> None:
        """A batch arrives."""
        lane = PartitionWindow(self.log, Capacity(lines_max=1_000_000))
        texts = [
            json.dumps({"custom_id": str(n), "body": {"model": model, "project": project, "n": n}}).encode()
            for n in range(lines)
        ]
        deadline = int(self.loop.now() + seconds)
        head = codec.RequestHead(batch_id=batch, project=project, first=0, deadline=deadline, url=ENDPOINT)
        self.models[model].enqueue(lane.admit(0, lines, 1), head, texts)

    async def end(self, *batches: str, lines: int, seconds: float = 600) -> dict[str, float]:
        """Wait for the ends of batches of so many lines; returns the times."""
        ends: dict[str, float] = {}
        until = self.loop.time() + seconds
        while len(ends) < len(batches):
            assert self.loop.time() < until, (ends, self.log.ends)
            await asyncio.sleep(0.01)
            for batch in batches:
                if self.log.ends[batch] >= lines:
                    ends.setdefault(batch, self.loop.time())
        return ends

    async def read_metrics(self) -> None:
        """Poll the server's metrics once a second."""
        while True:
            await asyncio.sleep(1)
            running = min(CAPACITY, self.engine.in_flight)
            metrics = ServerMetrics(running=running, waiting=self.engine.in_flight - running)
            self.server.apply_metrics(metrics, self.server.in_flight, self.loop.time())
            self.server.queue.changed()


Make = Callable[..., World]


def now() -> float:
    """Virtual time."""
    return asyncio.get_running_loop().time()


simulated = functools.partial(servers_at_work.simulated, kind=World)


LINES = 4_000


@pytest.mark.parametrize("queues", [True, False])
def test_models_share_the_calls_of_their_server(queues: bool) -> None:
    """Two models take as long as one with as many lines, end together, and keep the server full."""

    async def seconds(make: Make, names: list[str]) -> tuple[dict[str, float], World]:
        begun = now()
        world = make(names, queues=queues, calls_max=CAPACITY if queues else 256)
        lines = 2 * LINES // len(names)
        for name in names:
            world.publish(name, name, lines)
        ends = await world.end(*names, lines=lines)
        return {name: at - begun for name, at in ends.items()}, world

    async def case(make: Make) -> None:
        alone, _ = await seconds(make, ["one"])
        both, world = await seconds(make, ["a", "b"])
        assert abs(both["a"] - both["b"]) <= 0.05 * max(both.values())
        assert max(both.values()) <= 1.05 * alone["one"]
        assert world.engine.in_flight_max <= CAPACITY
        assert world.engine.refused <= 0.02 * 2 * LINES
        assert world.log.failed == 0

    simulated(case)


def test_metrics_of_a_server_hold_the_calls_of_all_its_models() -> None:
    """A server that queues shows what waits: with a ceiling far above, the models fill it, and no more."""

    async def case(make: Make) -> None:
        world = make(["a", "b"], calls_max=1_000)
        polling = asyncio.create_task(world.read_metrics())
        for name in ("a", "b"):
            world.publish(name, name, 20_000)
        await asyncio.sleep(20)
        levels = []
        for _ in range(100):
            await asyncio.sleep(0.05)
            levels.append(world.engine.in_flight)
        assert CAPACITY <= sum(levels) / len(levels) <= 1.2 * CAPACITY
        assert abs(world.log.ends["a"] - world.log.ends["b"]) <= 0.05 * world.log.ends["a"]
        polling.cancel()

    simulated(case)


def test_a_small_batch_is_not_starved_by_another_model() -> None:
    """It waits for a turn, however many lines the other model has."""

    async def case(make: Make) -> None:
        world = make(["large", "small"])
        world.publish("large", "large", 50_000)
        await asyncio.sleep(5)
        began = now()
        world.publish("small", "small", 10)
        ends = await world.end("small", lines=10)
        assert ends["small"] - began < 4 * CALL_SECONDS

    simulated(case)


def test_the_earliest_deadline_gets_half_of_its_project() -> None:
    """Whichever model it is for; the other models divide the rest."""

    async def case(make: Make) -> None:
        names = ["a", "b", "c", "urgent"]
        world = make(names)
        for name in names:
            world.publish(name, name, 20_000, seconds=3_600 if name == "urgent" else DAY_SECONDS)
        await asyncio.sleep(30)
        total = sum(world.log.ends.values())
        assert 0.45 * total <= world.log.ends["urgent"] <= 0.55 * total
        assert all(world.log.ends[name] >= 0.14 * total for name in "abc")

    simulated(case)


def test_projects_share_a_server_whatever_their_models() -> None:
    """Half for each: the models in which a project has lines are not counted."""

    async def case(make: Make) -> None:
        names = ["a", "b", "c", "d"]
        world = make(names)
        for name in names:
            world.publish(name, f"q-{name}", 20_000, project="q")
        world.publish("a", "p", 20_000, project="p")
        await asyncio.sleep(30)
        total = sum(world.log.ends.values())
        assert 0.45 * total <= world.log.ends["p"] <= 0.55 * total

    simulated(case)


@pytest.mark.parametrize("spare", [0, 16])
def test_models_share_the_results_that_the_log_may_owe(spare: int) -> None:
    """However many models a server has, a kill repeats no more; a model that waits goes on with the log."""

    async def case(make: Make) -> None:
        names = ["a", "b", "c"]
        world = make(names, unacknowledged_max=spare)
        world.log.room.clear()
        world.publish("a", "a", CAPACITY + spare)
        await asyncio.sleep(5)
        for name in names[1:]:
            world.publish(name, name, 1_000)
        await asyncio.sleep(5)
        assert world.server.unacknowledged == world.engine.sent.total() == CAPACITY + spare
        assert world.server.awaits_log
        world.log.room.set()
        await world.end("a", lines=CAPACITY + spare)
        await world.end(*names[1:], lines=1_000)
        assert world.server.unacknowledged == 0

    simulated(case)


def test_a_model_that_stops_leaves_its_turns_to_the_others() -> None:
    """In the middle of a turn, and it takes turns again when it goes on."""

    async def case(make: Make) -> None:
        world = make(["a", "b"])
        for name in ("a", "b"):
            world.publish(name, name, 20_000)
        await asyncio.sleep(2)
        world.models["a"].halt()
        await asyncio.sleep(1)
        before = world.log.ends["b"]
        await asyncio.sleep(10)
        assert world.log.ends["b"] - before >= 0.95 * 10 / CALL_SECONDS * CAPACITY
        world.models["a"].resume()
        before = dict(world.log.ends)
        await asyncio.sleep(10)
        gained = {name: world.log.ends[name] - before[name] for name in ("a", "b")}
        assert abs(gained["a"] - gained["b"]) <= 0.05 * gained["a"]

    simulated(case)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_server_that_lacks_a_model_serves_the_others(is_first: bool) -> None:
    """The lines of the lacking model wait and none fails; the others go on as if they were alone."""

    async def case(make: Make) -> None:
        world = make(["here", "lacking"])
        world.engine.lacks = {"lacking"}
        if is_first:
            world.publish("lacking", "lacking", 2_000)
            await asyncio.sleep(30)
        world.publish("here", "here", 10_000)
        if not is_first:
            await asyncio.sleep(5)
            world.publish("lacking", "lacking", 2_000)
        began, before = now(), world.log.ends["here"]
        await asyncio.sleep(10)
        assert world.log.ends["here"] - before >= 0.9 * (now() - began) / CALL_SECONDS * CAPACITY
        assert world.log.ends["lacking"] == 0
        assert world.engine.sent["lacking"] <= 200
        assert world.server.breaker.failures == 0

    simulated(case)


def test_a_server_that_is_back_is_open_to_all_its_models() -> None:
    """One breaker: an answer to one model is enough."""

    async def case(make: Make) -> None:
        world = make(["a", "b"], queues=False)
        world.engine._places = asyncio.Semaphore(0)
        for name in ("a", "b"):
            world.publish(name, name, 2_000)
        await asyncio.sleep(30)
        sent = world.engine.sent.total()
        assert sent < 100, "a full server gets probes, whichever models ask"
        for _ in range(CAPACITY):
            world.engine._places.release()
        await world.end("a", "b", lines=2_000, seconds=30)

    simulated(case)


@pytest.mark.parametrize("parts", [(0.5, 0.5), (0.75, 0.25), (1.0, 0.0), (0.25, 0.25, 0.5)])
def test_processes_divide_a_server(parts: tuple[float, ...]) -> None:
    """Together they make no more calls than it may have."""
    servers = []
    for part in parts:
        server = make_server("http://gpu/v1", ConcurrencyLimit(64), calls_max=64)
        server.limit.sure = 64
        server.set_part(part, 0.0)
        servers.append(server)
    assert 62 <= sum(server.proven_calls(0.0) for server in servers) <= 65, "each process may make one call"
