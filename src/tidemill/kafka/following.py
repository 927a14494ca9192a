"""How far the followers of a process have read the log, all of them together."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Final

from tidemill.kafka.connection import identity_of_files
from tidemill.kafka.follower import Follower, catch_up
from tidemill.schemas.log import topics
from tidemill.schemas.ports import Store
from tidemill.storage.owner import Origin, StoreOwner

AGE_SECONDS_MAX: Final = 30.0
"""How old what a follower has read may be; an idle one asks every 3 s, and a new leader takes some seconds."""

_log: Final = logging.getLogger(__name__)


class Following:
    """The followers of a process."""

    def __init__(self, followers: Iterable[Follower]) -> None:
        """Watch followers, which may have begun."""
        self._followers = tuple(followers)
        self._turns: defaultdict[tuple[str, ...], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._next: dict[tuple[str, ...], asyncio.Task[None]] = {}
        self._old: tuple[str, ...] = ()

    def ages(self) -> dict[str, float]:
        """Seconds since each follower that has caught up once had all records of its topic."""
        return {each.partition.topic: each.age_seconds for each in self._followers if each.is_caught_up}

    def fault(self) -> str | None:
        """Why what they have read is not current; None if it is. A change goes to the log."""
        if behind := sum(not each.is_caught_up for each in self._followers):
            return f"topics that are still being read: {behind} of {len(self._followers)}"
        old = tuple(topic for topic, age in self.ages().items() if age > AGE_SECONDS_MAX)
        if old != self._old:
            self._old = old
            _log.warning("topics that this process cannot follow: %s", ", ".join(old) or "none any more")
        return f"topics that are not followed any more: {len(old)} of {len(self._followers)}" if old else None

    def silent_since(self, topic: str) -> float | None:
        """Since when a topic has not been read, in Unix seconds; None if it is read as usual."""
        ages = (one.age_seconds for one in self._followers if one.partition.topic == topic and one.is_caught_up)
        return next((time.time() - age for age in ages if age > AGE_SECONDS_MAX), None)

    async def catch_up(self, *names: str) -> None:
        """Wait until all records of these topics are applied that the log has now; see `follower.catch_up`.

        Callers that come while it catches up wait for that, and share the next time.
        """
        if (task := self._next.get(names)) is None:
            task = self._next[names] = asyncio.create_task(self._catch_up(names), name="catch up")
            # Its callers may be gone when it fails.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(task)

    def owner(self, store: Store, outer_keys: Callable[[], list[str]]) -> StoreOwner:
        """Compares the log with a store; `outer_keys` by what the followers have read."""
        return StoreOwner(store, self._origin, outer_keys)

    async def _origin(self) -> Origin:
        """The log as it is now; see `storage.owner`.

        Raises:
            LogUnavailable: It does not answer, or this process does not read it up to its end.
        """
        name = topics.FILES.name
        (follower,) = (each for each in self._followers if each.partition.topic == name)
        await self.catch_up(name)
        return Origin(await identity_of_files(follower.kafka), follower.position)

    async def _catch_up(self, names: tuple[str, ...]) -> None:
        async with self._turns[names]:
            del self._next[names]
            await catch_up(self._followers, *names)
