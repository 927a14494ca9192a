"""Wakes those who wait for an object when it changes, and tells streams of events which objects changed.

A stream gets the latest state of each changed object, at most once a second. The feed remembers objects, not
events, so a slow stream costs no memory: if it falls behind by more objects than the feed remembers, it has lost
some, and its client reads everything anew. A project without a stream costs nothing.
"""

import asyncio
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar
from weakref import WeakValueDictionary

PAUSE_SECONDS: Final = 1.0
"""Least time between two wake-ups of a project's streams."""
GATHER_SECONDS: Final = 0.05
"""How long the first change after a pause waits for others, to send them together."""
OBJECTS_MAX: Final = 1_000
"""Changed objects of a project that the feed remembers."""
IDLE_PROJECTS_MAX: Final = 64
"""Projects without a stream that the feed remembers, for streams that come back."""

LOAD: Final = "load"
"""The kind of the load of servers, which changes each second."""

T = TypeVar("T")
Key = tuple[str, str]
"""Kind and id of an object."""


class ChangeEvent:
    """Wakes those who wait for an object when it changes; changes of others cost them nothing."""

    def __init__(self) -> None:
        self._waiting: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
        """By the id of the object; only waiters keep the events."""

    def notify(self, *object_ids: str) -> None:
        """Wake the waiters of these objects."""
        for object_id in object_ids:
            if (event := self._waiting.pop(object_id, None)) is not None:
                event.set()

    async def wait_for(self, object_id: str, look: Callable[[], T | None], *, seconds_max: float) -> T | None:
        """Call `look` now and after each change of an object until it finds it; None after `seconds_max`."""
        try:
            async with asyncio.timeout(seconds_max):
                while (found := look()) is None:
                    await self._waiting.setdefault(object_id, asyncio.Event()).wait()
        except TimeoutError:
            return look()
        return found


@dataclass(slots=True)
class ProjectChanges:
    """The changed objects of a project, the one that changed last at the end."""

    epoch: str = field(default_factory=lambda: secrets.token_hex(4))
    """Names this object: a stream that comes back to another one reads everything anew."""
    number: int = 0
    """The number of the last change, of this project alone: another one must not learn how many it has."""
    lost: int = 0
    """The number of the last change that the feed does not remember."""
    objects: OrderedDict[Key, int] = field(default_factory=OrderedDict)
    """The number of each object's last change."""
    streams: int = 0
    load_streams: int = 0
    """The streams that also get the load of servers."""
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    woken_at: float = 0.0
    is_due: bool = False
    frames: dict[Key, bytes] = field(default_factory=dict)
    """The objects as the streams send them, shared by all streams of the project until the next change."""

    def since(self, number: int) -> list[tuple[Key, int]] | None:
        """The objects that changed after a change, in the order of their changes; None if some are forgotten."""
        if number < self.lost:
            return None
        found = []
        for key, changed in reversed(self.objects.items()):
            if changed <= number:
                break
            found.append((key, changed))
        return found[::-1]


class ChangeFeed:
    """The changed objects of projects with streams."""

    def __init__(self) -> None:
        self.is_closed = False
        self.open_streams: Counter[str] = Counter()
        """Open streams by their project."""
        self._projects: OrderedDict[str, ProjectChanges] = OrderedDict()

    def publish(self, project: str, kind: str, object_id: str) -> None:
        """Note the change of an object of a project."""
        if (found := self._projects.get(project)) is None:
            return
        found.number += 1
        key = (kind, object_id)
        found.objects[key] = found.number
        found.objects.move_to_end(key)
        found.frames.pop(key, None)
        if len(found.objects) > OBJECTS_MAX:
            _, found.lost = found.objects.popitem(last=False)
        if found.streams and not found.is_due:
            found.is_due = True
            wait = max(GATHER_SECONDS, found.woken_at + PAUSE_SECONDS - time.monotonic())
            asyncio.get_running_loop().call_later(wait, self._wake, found)

    def publish_to_all(self, kind: str, object_id: str) -> None:
        """Note the change of an object that every project sees."""
        for project in self._projects:
            self.publish(project, kind, object_id)

    def publish_load(self) -> None:
        """Tell the streams that want it that the load of servers has changed; it is not remembered for others."""
        for project, found in self._projects.items():
            if found.load_streams:
                self.publish(project, LOAD, "")

    @contextmanager
    def stream(self, project: str, *, wants_load: bool = False) -> Iterator[ProjectChanges]:
        """Remember the changes of a project at least as long as its stream lasts."""
        if (found := self._projects.get(project)) is None:
            found = self._projects[project] = ProjectChanges()
        found.streams += 1
        found.load_streams += wants_load
        try:
            yield found
        finally:
            found.streams -= 1
            found.load_streams -= wants_load
            self._projects.move_to_end(project)
            idle = [name for name, one in self._projects.items() if not one.streams]
            for name in idle[: max(0, len(idle) - IDLE_PROJECTS_MAX)]:
                del self._projects[name]

    def close(self) -> None:
        """End all streams."""
        self.is_closed = True
        for found in self._projects.values():
            self._wake(found)

    def _wake(self, found: ProjectChanges) -> None:
        found.is_due = False
        found.frames.clear()
        found.woken_at = time.monotonic()
        event, found.woken = found.woken, asyncio.Event()
        event.set()
