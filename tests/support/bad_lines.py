"""A model's dispatcher among servers that refuse some lines for good, in virtual time.

The stage, its windows and all they use are the product's; the servers, the log and the clock are not. A run is a
function of its seed.
"""

import asyncio
import functools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
from support.servers import backend
from support.simtime import SimulatedLoop, run
from support.upstreams import Upstream

from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.calls.caller import Caller
from tidemill.processors.calls.endpoint_probe import EndpointProbe
from tidemill.processors.calls.forms import Forms
from tidemill.processors.calls.retry import Policy
from tidemill.processors.dispatcher import Dispatcher, Services
from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit
from tidemill.processors.memory_budget import LineBudget
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.window import LINES_MAX, Capacity, PartitionWindow
from tidemill.processors.scheduling.prefix_groups import Prefixes
from tidemill.schemas.log import codec

ENDPOINT = "/v1/chat/completions"
DAY_SECONDS = 86_400.0
RECORD_LINES = 50
GOOD = Answer(200, b'{"choices":[{"finish_reason":"stop","message":{"content":"yes"}}]}')
FULL = Answer(429, b'{"error":{"message":"too many"}}')
TIMEOUT_SECONDS = 30.0
"""Timeout of a call."""
LOG_SECONDS = 0.005
HOUR = 3600.0
FACTOR = 1.2
"""How much longer good lines may take beside bad ones than alone."""
WORDS = {FailureKind.TIMEOUT: b"backend_timeout", FailureKind.READ: b"backend_connection_lost"}
"""Texts of error lines for failures without an answer."""

NO_LINE = ("", -1)
PLAIN_PROBE = ("", -2)
"""The key of a health probe with only the required fields; `NO_LINE` is that of one that also bounds the reply."""

Place = tuple[str, int]
"""A line: its batch and number."""
Outcome = Answer | FailureKind


def refusal(status: int) -> Answer:
    """A server's answer with this status."""
    return Answer(status, b'{"error":{"message":"this is %d"}}' % status)


@dataclass
class Server:
    """Answers good lines, up to `seats` at a time.

    Attributes:
        rule: The outcome of a line at a time; None is a good answer. A health probe is a line of no batch.
        seats: Calls that it works on at one time; it refuses more.
        seconds: Mean duration of a good call.
        bad_seconds: Duration of any other call.
        calls: Number of calls by line.
        others: Calls without a line.
    """

    rule: Callable[[Place, float], Outcome | None] = lambda _place, _now: None
    seats: int = 64
    seconds: float = 0.1
    bad_seconds: float = 0.002
    calls: Counter[Place] = field(default_factory=Counter)
    others: int = 0
    in_flight: int = 0

    async def answer(self, place: Place, seconds: float, chance: random.Random) -> Outcome:
        """One call."""
        self.calls[place] += 1
        if self.in_flight >= self.seats:
            await asyncio.sleep(0.001)
            return FULL
        self.in_flight += 1
        try:
            outcome = self.rule(place, asyncio.get_running_loop().time())
            if outcome is FailureKind.TIMEOUT:
                await asyncio.sleep(seconds)
                return outcome
            await asyncio.sleep(self.bad_seconds if outcome else self.seconds * chance.uniform(0.5, 1.5))
            return outcome or GOOD
        finally:
            self.in_flight -= 1


class _Upstream(Upstream):
    def __init__(self, servers: dict[str, Server], chance: random.Random) -> None:
        self._servers = servers
        self._chance = chance

    async def post(
        self, url: str, headers: dict[str, str], body: bytes | memoryview, seconds: float, more: bytes = b""
    ) -> Outcome:
        del headers, more
        asked = orjson.loads(bytes(body))
        probe_place = NO_LINE if "max_tokens" in asked else PLAIN_PROBE
        place = (asked["batch"], asked["n"]) if "batch" in asked else probe_place
        base = url.removesuffix("/completions").removesuffix("/chat")
        return await self._servers[base].answer(place, seconds, self._chance)

    async def get(self, url: str, headers: dict[str, str], seconds: float, bytes_max: int) -> Outcome:
        del url, headers, seconds, bytes_max
        return refusal(404)

    async def close(self) -> None: ...


class _Tap:
    def __init__(self) -> None:
        self.acked = 0

    def ack(self, token: Any) -> None:
        assert token == self.acked, "an acknowledgement out of order"
        self.acked += 1

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class World:
    """A stage, its servers, and the log of the lines' outcomes."""

    def __init__(
        self,
        loop: SimulatedLoop,
        servers: Iterable[Server],
        *,
        seed: int = 0,
        max_in_flight: int = 64,
        policy: Policy | None = None,
        prefix: bool = False,
        lines_max: int = LINES_MAX,
        is_connected: bool = True,
    ) -> None:
        self.loop = loop
        self._is_connected = is_connected
        self.chance = random.Random(seed)
        self.servers = {f"http://{number}": server for number, server in enumerate(servers)}
        self.ends: dict[Place, bytes] = {}
        """The outcomes."""
        self.failed: set[Place] = set()
        """The lines whose outcome is an error."""
        self._published: list[tuple[codec.RequestHead, list[bytes]]] = []
        self._waiting: deque[int] = deque()
        self._options = max_in_flight, policy or Policy(), prefix, lines_max
        self._start()

    def _start(self) -> None:
        max_in_flight, policy, prefix, lines_max = self._options
        made = [backend(base, ConcurrencyLimit(max_in_flight)) for base in self.servers]
        fleet = BackendPool(made, calls_max=max_in_flight)
        upstream: Any = _Upstream(self.servers, self.chance)
        upstream.is_open = self._is_connected
        self.fleet = fleet
        ended = ClosedBatches()
        store: Any = None
        caller = Caller(
            pool=fleet, endpoint_probe=EndpointProbe("m", fleet, upstream), upstream=upstream, store=store,
            forms=Forms(store, LineBudget()),
            clock=self.loop.now, seconds_max=TIMEOUT_SECONDS,
        )  # fmt: skip
        services = Services(
            budget=LineBudget(), outbox=self, store=store, closed=ended, clock=self.loop.now,
            chance=self.chance.random,
        )  # fmt: skip
        prefixes = Prefixes(lambda line: line.index // 20, fleet.backends) if prefix else None
        self.stage = Dispatcher(caller, services, policy=policy, prefixes=prefixes)
        self.tap = _Tap()
        self.window = PartitionWindow(self.tap, Capacity(lines_max=lines_max))

    async def send(self, batch_id: str, value: bytes, headers: codec.Headers) -> None:
        """The log."""
        await asyncio.sleep(LOG_SECONDS)
        start = 0
        for mark in codec.lines_marks(headers, len(value))[1]:
            assert (batch_id, mark.index) not in self.ends, "a second outcome"
            self.ends[batch_id, mark.index] = value[start : start + mark.size]
            if mark.failed:
                self.failed.add((batch_id, mark.index))
            start += mark.size

    def publish(
        self, batch_id: str, lines: int, *, seconds: float = DAY_SECONDS, endpoint: str = ENDPOINT
    ) -> None:
        """A batch comes."""
        deadline = int(self.loop.now() + seconds)
        for first in range(0, lines, RECORD_LINES):
            texts = [
                b'{"custom_id":"%d","body":{"model":"m","batch":"%b","n":%d}}' % (n, batch_id.encode(), n)
                for n in range(first, min(lines, first + RECORD_LINES))
            ]
            self._waiting.append(len(self._published))
            head = codec.RequestHead(batch_id=batch_id, project="p", first=first, deadline=deadline, url=endpoint)
            self._published.append((head, texts))
        self._feed()

    def _feed(self) -> None:
        while self._waiting and not self.window.is_paused:
            number = self._waiting.popleft()
            head, texts = self._published[number]
            self.stage.enqueue(self.window.admit(number, len(texts), sum(map(len, texts))), head, texts)

    async def restart(self) -> None:
        """The process is killed, and its successor reads the whole log again."""
        await self.stage.close()
        # Until then, records on their way to the log either arrive or are lost.
        await asyncio.sleep(2 * LOG_SECONDS)
        self._start()
        for batch_id, index in self.ends:
            self.stage.lines.completed.mark(batch_id, index)
        self._waiting = deque(range(len(self._published)))
        self._feed()

    async def run(self, seconds: float, until: Callable[[], bool] | None = None) -> float:
        """Let time pass, at most this many seconds; returns how many passed."""
        begun = self.loop.time()
        while self.loop.time() < begun + seconds and not (until and until()):
            await asyncio.sleep(0.05)
            self._feed()
        return self.loop.time() - begun

    def has_ended(self, places: Iterable[Place]) -> Callable[[], bool]:
        """A condition for `run`: all these lines have ended."""
        left = set(places)

        def check() -> bool:
            left.difference_update(self.ends)
            return not left

        return check


def name(outcome: Outcome) -> str:
    """The name of a test case with this outcome."""
    if isinstance(outcome, FailureKind):
        return outcome.name
    return str(outcome.status) if outcome.status >= 400 else repr(outcome.body)


def words(outcome: Outcome) -> bytes:
    """Text that the error line of this outcome contains."""
    if isinstance(outcome, FailureKind):
        return WORDS[outcome]
    return b'"status_code":%d' % outcome.status if outcome.status >= 400 else b"backend_reply_invalid"


def lines(batch: str, numbers: Iterable[int]) -> set[Place]:
    """Some lines of a batch."""
    return {(batch, number) for number in numbers}


def is_answered(world: World, place: Place) -> bool:
    """Whether a line has ended well."""
    return place in world.ends and place not in world.failed


@functools.cache
def alone(batches: tuple[int, ...], seats: int = 64) -> float:
    """Seconds that good lines take in a run without bad ones.

    Args:
        batches: Lines of each batch.
        seats: Seats of the only server.
    """

    async def main(loop: SimulatedLoop) -> float:
        world = World(loop, [Server(seats=seats)])
        for number, size in enumerate(batches):
            world.publish(f"alone{number}", size)
        wanted = {place for n, size in enumerate(batches) for place in lines(f"alone{n}", range(size))}
        seconds = await world.run(HOUR, world.has_ended(wanted))
        await world.stage.close()
        return seconds

    return run(main)
