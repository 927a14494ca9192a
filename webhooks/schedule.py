"""Decides when each delivery is attempted, and when the stage gives up. No I/O.

- Each endpoint has a lane with a few attempts at a time, fewer while it fails, so that a slow receiver holds up no
  other one. All lanes of a process share its slots, in turn.
- A lane sends the events of one batch one after the other: the next one waits for the end of the one before.
- A failed attempt is repeated after a pause that doubles, with jitter.
"""

import heapq
import random
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

from tidemill.retrying import pause_seconds
from tidemill.schemas.webhooks.messages import Health

LIFE_SECONDS: Final = 72 * 3600
"""How long a delivery is attempted, from the end of the batch."""
DISABLE_SECONDS: Final = 5 * 86_400
"""An endpoint without a success for this time after a failure is disabled at its next failure."""
FIRST_SECONDS: Final = 5.0
LONGEST_SECONDS: Final = 3600.0
"""Bounds on the pause after a failed attempt."""
LANE_MAX: Final = 8
"""Attempts in flight at one endpoint."""
HALVINGS_MAX: Final = 3
SLOTS: Final = 256
"""Attempts in flight of a process."""


def pause(attempts: int) -> float:
    """Seconds until the next attempt, after this many failed ones."""
    return pause_seconds(attempts - 1, first=FIRST_SECONDS, longest=LONGEST_SECONDS)


def after_failure(health: Health, now: int) -> Health:
    """The health of an endpoint after a failure at this time, Unix seconds."""
    if health.failing_since is None:
        return health.model_copy(update={"failing_since": now})
    if health.disabled_at is None and now - health.failing_since >= DISABLE_SECONDS:
        return health.model_copy(update={"disabled_at": now})
    return health


@dataclass(slots=True)
class Slots:
    """The attempts that a process may begin."""

    free: int = SLOTS


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


class Schedule:
    """The pending deliveries of one partition. Times are those of a monotonic clock."""

    def __init__(self, slots: Slots) -> None:
        """Begin empty; the partitions of a process share the slots."""
        self._slots = slots
        self._later: list[tuple[float, float, str]] = []
        """A heap of time, token and delivery; the token is random, which shuffles equal times."""
        self._tokens: dict[str, float] = {}
        """The token of a delivery's next attempt; entries with another token are outdated."""
        self._lanes: OrderedDict[str, _Lane] = OrderedDict()
        """In the order of their turns."""
        self._chains: dict[tuple[str, str], deque[str]] = {}
        """By lane and batch: only the first delivery of a chain is attempted."""
        self._chain_of: dict[str, tuple[str, str]] = {}
        self._flying: set[str] = set()

    def __len__(self) -> int:
        return len(self._chain_of)

    @property
    def in_flight(self) -> int:
        """Attempts in flight."""
        return len(self._flying)

    def put(self, delivery_id: str, lane: str, batch_id: str, at: float) -> None:
        """Add a delivery; its first attempt is due at this time, and after the batch's earlier deliveries.

        The lane is the endpoint, or the URL of a callback.
        """
        if delivery_id in self._chain_of:
            return
        place = self._chain_of[delivery_id] = (lane, batch_id)
        self._lanes.setdefault(lane, _Lane()).pending += 1
        chain = self._chains.setdefault(place, deque())
        chain.append(delivery_id)
        if len(chain) == 1:
            self._push(delivery_id, at)

    def is_due(self, now: float) -> bool:
        """Whether `start` would return a delivery."""
        if self._slots.free <= 0:
            return False
        return bool(self._later and self._later[0][0] <= now) or any(
            lane.ready and lane.room > 0 for lane in self._lanes.values()
        )

    def start(self, now: float) -> list[str]:
        """The deliveries to attempt now; `returned` must follow for each."""
        while self._later and self._later[0][0] <= now:
            _, token, delivery_id = heapq.heappop(self._later)
            if self._tokens.get(delivery_id) == token:
                self._lanes[self._chain_of[delivery_id][0]].ready.append((token, delivery_id))
        started: list[str] = []
        turns = [name for name, lane in self._lanes.items() if lane.ready]
        while turns and self._slots.free > 0:
            turns = [name for name in turns if self._start_one(name, started)]
        return started

    def returned(self, delivery_id: str, *, is_good: bool) -> None:
        """Note that an attempt has ended; `again` or `drop` follows."""
        self._flying.discard(delivery_id)
        self._slots.free += 1
        lane = self._lanes[self._chain_of[delivery_id][0]]
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
        self._lanes[place[0]].pending -= 1
        if not self._lanes[place[0]].pending:
            del self._lanes[place[0]]

    def is_flying(self, delivery_id: str) -> bool:
        """Whether an attempt is in flight."""
        return delivery_id in self._flying

    def close(self) -> None:
        """Return the slots of attempts in flight."""
        self._slots.free += len(self._flying)
        self._flying.clear()

    def _push(self, delivery_id: str, at: float) -> None:
        token = self._tokens[delivery_id] = random.random()  # noqa: S311  it spreads load
        heapq.heappush(self._later, (at, token, delivery_id))

    def _start_one(self, name: str, started: list[str]) -> bool:
        """Start one delivery of a lane; returns whether it did."""
        lane = self._lanes[name]
        while lane.ready and lane.room > 0 and self._slots.free > 0:
            token, delivery_id = lane.ready.popleft()
            if self._tokens.get(delivery_id) != token:
                continue
            del self._tokens[delivery_id]
            lane.in_flight += 1
            self._slots.free -= 1
            self._flying.add(delivery_id)
            self._lanes.move_to_end(name)
            started.append(delivery_id)
            return True
        return False
