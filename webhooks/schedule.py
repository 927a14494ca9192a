"""Decides when each delivery is attempted, and when the stage gives up. No I/O.

- Each endpoint, or host of callbacks, has a lane with a few attempts at a time, fewer while an endpoint fails, so
  that a slow receiver holds up no other one.
- The projects of a process share its slots in turn, and the lanes of a project its turns. A project gets a slot
  while it has fewer than are free: half of all if it is alone, a third beside another that wants as many. So some
  stay free for others, however many lanes it has.
- A lane sends the events of one batch one after the other: the next one waits for the end of the one before.
- A failed attempt is repeated after a pause that doubles, with jitter.
"""

import heapq
import random
import re
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tidemill.retrying import pause_seconds
from tidemill.schemas.webhooks.messages import Health

LIFE_SECONDS: Final = 72 * 3600
"""How long a delivery is attempted, from the end of the batch."""
DISABLE_SECONDS: Final = 5 * 86_400
"""An endpoint whose attempts have failed for this time without a success is disabled."""
COUNT_SECONDS_MIN: Final = 600
"""Failures in this time are counted together, so that few records say so."""
COUNT_SECONDS_MAX: Final = 2 * 3600
"""A longer time between two failures counts as this: no attempt failed meanwhile, or the clock was stepped."""
FIRST_SECONDS: Final = 5.0
LONGEST_SECONDS: Final = 3600.0
"""Bounds on the pause after a failed attempt."""
LANE_MAX: Final = 8
"""Attempts in flight at one endpoint."""
HALVINGS_MAX: Final = 3
SLOTS: Final = 256
"""Attempts in flight of a process."""
_HOST: Final = re.compile(r"\w+://([^/?#]+)")


def pause(attempts: int) -> float:
    """Seconds until the next attempt, after this many failed ones."""
    return pause_seconds(attempts - 1, first=FIRST_SECONDS, longest=LONGEST_SECONDS)


def lane_of(endpoint_id: str, url: str | None) -> str:
    """The lane of a delivery: the host of its callback, with the port, or else its endpoint."""
    found = _HOST.match(url or "")
    return found[1].lower() if found else endpoint_id


def after_failure(health: Health, now: int) -> Health:
    """The health of an endpoint after a failure at this time, Unix seconds."""
    if health.failing_since is None:
        return health.model_copy(update={"failing_since": now, "counted_at": now})
    step = now - (health.counted_at or now)
    if health.disabled_at is not None or 0 <= step < COUNT_SECONDS_MIN:
        return health
    seconds = health.failing_seconds + min(max(step, 0), COUNT_SECONDS_MAX)
    counted = {"counted_at": now, "failing_seconds": seconds}
    return health.model_copy(update=counted | ({"disabled_at": now} if seconds >= DISABLE_SECONDS else {}))


@dataclass(slots=True)
class Slots:
    """The attempts that a process may begin."""

    free: int = SLOTS
    taken: Counter[str] = field(default_factory=Counter)
    """Attempts in flight by project."""

    def has_room(self, project: str) -> bool:
        """Whether a project may begin another attempt."""
        return self.taken[project] < self.free

    def take(self, project: str, number: int = 1) -> None:
        """Take slots for a project; a negative number gives them back."""
        self.free -= number
        self.taken[project] += number
        if not self.taken[project]:
            del self.taken[project]


@dataclass(slots=True)
class _Lane:
    pending: int = 0
    in_flight: int = 0
    failures: int = 0
    """Failures in a row."""
    ready: deque[tuple[float, str]] = field(default_factory=deque)
    """Tokens and deliveries."""

    @property
    def room(self) -> int:
        return (LANE_MAX >> min(self.failures, HALVINGS_MAX)) - self.in_flight


@dataclass(slots=True)
class _Project:
    lanes: dict[str, _Lane] = field(default_factory=dict)
    turns: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """The lanes with ready deliveries, in the order of their turns."""


class _Place(NamedTuple):
    """Only the first delivery of a place is attempted."""

    project: str
    lane: str
    batch_id: str


class Schedule:
    """The pending deliveries of one partition. Times are those of a monotonic clock."""

    def __init__(self, slots: Slots) -> None:
        """Begin empty; the partitions of a process share the slots."""
        self._slots = slots
        self._later: list[tuple[float, float, str]] = []
        """A heap of time, token and delivery; the token is random, which shuffles equal times."""
        self._tokens: dict[str, float] = {}
        """The token of a delivery's next attempt; entries with another token are outdated."""
        self._projects: OrderedDict[str, _Project] = OrderedDict()
        """In the order of their turns."""
        self._chains: dict[_Place, deque[str]] = {}
        self._chain_of: dict[str, _Place] = {}
        self._flying: set[str] = set()

    def __len__(self) -> int:
        return len(self._chain_of)

    @property
    def in_flight(self) -> int:
        """Attempts in flight."""
        return len(self._flying)

    def put(self, delivery_id: str, project: str, lane: str, batch_id: str, at: float) -> None:
        """Add a delivery; its first attempt is due at this time, and after the batch's earlier deliveries.

        The lane is the endpoint, or the host of a callback.
        """
        if delivery_id in self._chain_of:
            return
        place = self._chain_of[delivery_id] = _Place(project, lane, batch_id)
        self._projects.setdefault(project, _Project()).lanes.setdefault(lane, _Lane()).pending += 1
        chain = self._chains.setdefault(place, deque())
        chain.append(delivery_id)
        if len(chain) == 1:
            self._push(delivery_id, at)

    def is_due(self, now: float) -> bool:
        """Whether `start` would return a delivery."""
        if self._slots.free <= 0:
            return False
        return bool(self._later and self._later[0][0] <= now) or any(
            self._slots.has_room(name) and any(project.lanes[lane].room > 0 for lane in project.turns)
            for name, project in self._projects.items()
        )

    def start(self, now: float) -> list[str]:
        """The deliveries to attempt now; `returned` must follow for each."""
        while self._later and self._later[0][0] <= now:
            _, token, delivery_id = heapq.heappop(self._later)
            if self._tokens.get(delivery_id) == token:
                place = self._chain_of[delivery_id]
                project = self._projects[place.project]
                project.lanes[place.lane].ready.append((token, delivery_id))
                project.turns.setdefault(place.lane)
        started: list[str] = []
        turns = [name for name, project in self._projects.items() if project.turns]
        while turns:
            turns = [name for name in turns if self._start_one(name, started)]
        return started

    def returned(self, delivery_id: str, *, is_good: bool) -> None:
        """Note that an attempt has ended; `again` or `drop` follows."""
        self._flying.discard(delivery_id)
        place = self._chain_of[delivery_id]
        self._slots.take(place.project, -1)
        lane = self._projects[place.project].lanes[place.lane]
        lane.in_flight -= 1
        lane.failures = 0 if is_good else lane.failures + 1

    def again(self, delivery_id: str, at: float) -> None:
        """Attempt a delivery once more at this time."""
        self._push(delivery_id, at)

    def drop(self, delivery_id: str, now: float) -> None:
        """Remove a delivery that is not in flight; the next one of its batch is due."""
        place = self._chain_of.pop(delivery_id)
        self._tokens.pop(delivery_id, None)
        chain = self._chains[place]
        was_first = chain[0] == delivery_id
        chain.remove(delivery_id)
        if not chain:
            del self._chains[place]
        elif was_first:
            self._push(chain[0], now)
        project = self._projects[place.project]
        project.lanes[place.lane].pending -= 1
        if not project.lanes[place.lane].pending:
            del project.lanes[place.lane]
            project.turns.pop(place.lane, None)
        if not project.lanes:
            del self._projects[place.project]

    def is_flying(self, delivery_id: str) -> bool:
        """Whether an attempt is in flight."""
        return delivery_id in self._flying

    def close(self) -> None:
        """Return the slots of attempts in flight."""
        for delivery_id in self._flying:
            self._slots.take(self._chain_of[delivery_id].project, -1)
        self._flying.clear()

    def _push(self, delivery_id: str, at: float) -> None:
        token = self._tokens[delivery_id] = random.random()  # noqa: S311  it spreads load
        heapq.heappush(self._later, (at, token, delivery_id))

    def _start_one(self, name: str, started: list[str]) -> bool:
        """Start one delivery of a project; returns whether it did."""
        if not self._slots.has_room(name) or (lane_name := self._turn(self._projects[name])) is None:
            return False
        project = self._projects[name]
        lane = project.lanes[lane_name]
        _, delivery_id = lane.ready.popleft()
        del self._tokens[delivery_id]
        lane.in_flight += 1
        self._slots.take(name)
        self._flying.add(delivery_id)
        project.turns.move_to_end(lane_name)
        self._projects.move_to_end(name)
        started.append(delivery_id)
        return True

    def _turn(self, project: _Project) -> str | None:
        """The next lane of a project that may start a delivery; forgets the turns of those without one."""
        done: list[str] = []
        found = None
        for name in project.turns:
            lane = project.lanes[name]
            while lane.ready and self._tokens.get(lane.ready[0][1]) != lane.ready[0][0]:
                lane.ready.popleft()
            if not lane.ready:
                done.append(name)
            elif lane.room > 0:
                found = name
                break
        for name in done:
            del project.turns[name]
        return found
