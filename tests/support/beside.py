"""People and batches at one server with continuous batching, in virtual time.

People's requests come at random (Poisson). A process makes calls as its limits allow, and reads the text of the
server's metrics page, as the poller does. A run depends on its seed alone.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from support.engine import Engine, EngineSettings, Request

from tidemill.processors.backends.backend import Permit
from tidemill.processors.backends.metrics_poller import POLL_SECONDS
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.limits import server_metrics
from tidemill.processors.limits.headroom import WATCH_SECONDS

WAY_SECONDS: Final = 0.001
"""Round-trip time to the server."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The requests of people and of lines; lengths are mean tokens, spread evenly from half to 1.5 times the mean.

    Attributes:
        people: Requests of people a second, by time.
        people_prompt: Length of people's prompts.
        people_output: Length of their answers.
        line_prompt: Length of lines' prompts.
        line_output: Length of their answers.
        line_priority: `priority` of lines; people have 0.
    """

    people: Callable[[float], float] = lambda _: 4.0
    people_prompt: int = 150
    people_output: int = 400
    line_prompt: int = 150
    line_output: int = 400
    line_priority: int = 0


@dataclass
class Seen:
    """The results of a run."""

    people: list[Request] = field(default_factory=list)
    lines: list[Request] = field(default_factory=list)
    levels: list[tuple[float, int]] = field(default_factory=list)
    """After each reading of the metrics: the time, and calls in flight."""

    def first_tokens(self, since: float = 0.0, until: float = float("inf")) -> list[float]:
        """Seconds to the first token, of the people who came in this time."""
        came = [one for one in self.people if since <= one.arrived_at < until]
        return [one.first_token_at - one.arrived_at for one in came if one.first_token_at is not None]

    def rate(self, since: float, until: float) -> float:
        """Tokens of lines a second."""
        ended = [one.output for one in self.lines if one.ended_at is not None and since <= one.ended_at < until]
        return sum(ended) / (until - since)


class Beside:
    """One run."""

    def __init__(
        self,
        settings: EngineSettings,
        traffic: Traffic,
        pools: Sequence[BackendPool] = (),
        *,
        seed: int = 0,
    ) -> None:
        self.engine = Engine(settings)
        self.seen = Seen()
        self.now = 0.0
        self.page: Callable[[bytes], bytes | None] = lambda page: page
        """Edits the text of the metrics page; None if the server does not answer."""
        self._settings = settings
        self._traffic = traffic
        self._pools = pools
        self._people = random.Random(f"people {seed}")
        self._lines = random.Random(f"lines {seed}")
        self.poll_seconds = POLL_SECONDS
        self.polls = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._calls: dict[Request, tuple[BackendPool, Permit]] = {}
        self._is_stepping = False
        self._at(0.0, self._person)
        self._at(0.0, self._poll)

    def run(self, seconds: float) -> Seen:
        """Let time pass."""
        until = self.now + seconds
        while self._events[0][0] <= until:
            self.now, _, act = heappop(self._events)
            act()
        self.now = until
        return self.seen

    def restart(self, settings: EngineSettings) -> None:
        """Restart the server; its requests break off, and the process repeats the calls."""
        self.engine = Engine(settings, started_at=self.now)
        self._settings = settings
        self._is_stepping = False
        for pool, permit in self._calls.values():
            pool.release(permit)
        self._calls.clear()
        self._fill()

    def _at(self, at: float, act: Callable[[], None]) -> None:
        heappush(self._events, (at, next(self._order), act))

    def _person(self) -> None:
        rate = self._traffic.people(self.now)
        if rate:
            if self.now:
                prompt, output = self._lengths(
                    self._people, self._traffic.people_prompt, self._traffic.people_output
                )
                self.seen.people.append(self.engine.submit(prompt, output, self.now))
                self._step()
            self._at(self.now + self._people.expovariate(rate), self._person)
        else:
            self._at(self.now + 0.1, self._person)

    @staticmethod
    def _lengths(chance: random.Random, prompt: int, output: int) -> tuple[int, int]:
        return round(prompt * chance.uniform(0.5, 1.5)), round(output * chance.uniform(0.5, 1.5))

    def _fill(self) -> None:
        for pool in self._pools:
            while (permit := pool.acquire(self.now)) is not None:
                headroom = permit.backend.server.headroom
                pause = 0.0 if headroom is None else headroom.pause
                self._at(self.now + pause + WAY_SECONDS, lambda pool=pool, permit=permit: self._call(pool, permit))
            if (at := pool.opens_at(self.now)) is not None:
                self._at(at, self._fill)

    def _call(self, pool: BackendPool, permit: Permit) -> None:
        prompt, output = self._lengths(self._lines, self._traffic.line_prompt, self._traffic.line_output)
        request = self.engine.submit(prompt, output, self.now, self._traffic.line_priority)
        self._calls[request] = pool, permit
        self._step()

    def _step(self) -> None:
        if self._is_stepping or self.engine.is_idle:
            return
        self._is_stepping = True
        seconds, engine = self.engine.begin(self.now), self.engine
        self._at(self.now + seconds, lambda: self._stepped(engine, seconds))

    def _stepped(self, engine: Engine, seconds: float) -> None:
        if engine is not self.engine:
            return
        self._is_stepping = False
        for request in engine.end(self.now, seconds):
            if (call := self._calls.pop(request, None)) is not None:
                self.seen.lines.append(request)
                self._at(self.now + WAY_SECONDS, lambda call=call: self._answered(*call))
        self._step()

    def _answered(self, pool: BackendPool, permit: Permit) -> None:
        pool.answered(permit, self.now)
        self._fill()

    def _poll(self) -> None:
        page = self.page(self.engine.metrics.page)
        self.polls += 1
        reading = None if page is None else server_metrics.read(page)
        for pool in self._pools:
            for backend in pool.backends:
                server = backend.server
                if reading is not None and (server.in_flight or server.headroom is not None):
                    server.apply_metrics(reading, server.in_flight, self.now)
                self.seen.levels.append((self.now, server.in_flight))
        self._fill()
        rooms = [backend.server.headroom for pool in self._pools for backend in pool.backends]
        is_watching = any(room is not None and room.is_watching for room in rooms)
        self._at(self.now + (WATCH_SECONDS if is_watching else self.poll_seconds), self._poll)


def quantile(values: Sequence[float], part: float) -> float:
    """A quantile of some values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
