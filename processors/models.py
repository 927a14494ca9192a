"""The models of a process: which of them are awake, and which partitions each reads.

All models share one Faust app and one consumer group, which divides the partitions of one empty topic: the owner
of its partition `n` reads partition `n` of every model's topics (`faust/added_partitions.py`). So no change of the
models is a rebalance.

A few models stay awake, so that the first line of a batch does not wait. If there are many, a model is asleep as
long as no line waits for it: it fetches no records, and has no dispatcher. It wakes at once when
`tidemill.batches` shows an open batch of it, and otherwise at the next look at the ends of all sleeping
partitions, which needs no other stage. It goes to sleep again once all that it has read is committed and no line
has arrived for a while.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from tidemill.faust.added_partitions import TP, AddedPartitions, Start
from tidemill.faust.partitions import PartitionHandle
from tidemill.faust.stage_app import StageApp
from tidemill.processors.awake_model import AwakeModel, Configured, Shared
from tidemill.processors.partitions.places import Places
from tidemill.processors.partitions.window import PartitionWindow
from tidemill.schemas.log import topics
from tidemill.tasks import watched

LOOK_SECONDS: Final = 3.0
"""Between two lookups of the ends of sleeping partitions."""
FIND_SECONDS: Final = 30.0
"""Between two lookups of topics that did not exist."""
HURRY_SECONDS: Final = 0.25
"""The same while an open batch waits for such a topic: ingest creates a model's topics with its first line."""
SLEEP_SECONDS: Final = 60.0
"""A model without work for this long goes to sleep. By then its bucket of tokens is full."""
AWAKE_MAX: Final = 16
"""Up to this many models never sleep."""

_log = logging.getLogger(__name__)


class OpenBatches:
    """The open batches of each model."""

    def __init__(self) -> None:
        self._models: dict[str, frozenset[str]] = {}
        self._batches: defaultdict[str, set[str]] = defaultdict(set)

    def __contains__(self, model: str) -> bool:
        return model in self._batches

    def __iter__(self) -> Iterator[str]:
        return iter(self._batches)

    def of(self, model: str) -> Collection[str]:
        """Those of a model."""
        return self._batches.get(model, ())

    def open(self, batch_id: str, models: frozenset[str]) -> bool:
        """Note an open batch; returns whether its models are new."""
        if self._models.get(batch_id) == models:
            return False
        self.close(batch_id)
        self._models[batch_id] = models
        for model in models:
            self._batches[model].add(batch_id)
        return bool(models)

    def close(self, batch_id: str) -> None:
        """Forget a batch."""
        for model in self._models.pop(batch_id, ()):
            self._batches[model].discard(batch_id)
            if not self._batches[model]:
                del self._batches[model]


class Models:
    """All models of a process."""

    def __init__(self, app: StageApp, shared: Shared, places: Places) -> None:
        """Start without models; `app` has not started yet, and subscribes to `tidemill.processors` alone."""
        self._app = app
        self._shared = shared
        self._places = places
        self._added = AddedPartitions(app, topics.PROCESSORS.name)
        self._configured: dict[str, Configured] = {}
        self._sleepless: frozenset[str] = frozenset()
        self._by_topic: dict[str, str] = {}
        self._part = 0.0
        self.awake: dict[str, AwakeModel] = {}
        self._readers: dict[str, AwakeModel] = {}
        """The model that reads a topic."""
        self._leaving: dict[str, AwakeModel] = {}
        """Models whose calls have changed, until those in flight have ended."""
        self.open_batches = OpenBatches()
        self._news = asyncio.Event()
        self._found_at = self._looked_at = float("-inf")
        shared.closed.listen(self.open_batches.close)

    @property
    def at_work(self) -> list[AwakeModel]:
        """All models with a dispatcher."""
        return [*self.awake.values(), *self._leaving.values()]

    def held(self) -> dict[str, int]:
        """Records of each model that wait for a key."""
        counts = dict.fromkeys(self._configured, 0)
        for model in self.at_work:
            counts[model.name] = counts.get(model.name, 0) + len(model.held_requests)
        return counts

    def configure(self, models: Mapping[str, Configured]) -> None:
        """Replace the models by these. One that is gone keeps its lines, and its pool has no server."""
        removed = {name: one for name, one in self._configured.items() if name in self.awake}
        self._sleepless = frozenset(models if len(models) <= AWAKE_MAX else ())
        self._configured = removed | dict(models)
        self._by_topic = {topic: name for name in self._configured for topic in _topics(name)}
        self._find_again()
        self._news.set()

    def opened(self, batch_id: str, models: frozenset[str]) -> None:
        """Wake the models of an open batch."""
        if self.open_batches.open(batch_id, models):
            self._news.set()

    def halt(self) -> None:
        """Start no more calls; `resume` undoes it."""
        for model in self.awake.values():
            model.dispatcher.halt()

    def resume(self) -> None:
        """Start calls again."""
        for model in self.awake.values():
            model.dispatcher.resume()

    def begin(self, numbers: Collection[int], part: float) -> None:
        """Begin after an assignment of the partitions with these numbers, which make up a `part` of all."""
        self._added.clear()
        self._places.reset(numbers)
        self._part = part
        for model in self.awake.values():
            model.partitions.clear()
            model.dispatcher.set_part(part)
            model.dispatcher.resume()
        self._find_again()

    def extend(self, numbers: Collection[int], part: float) -> None:
        """Read these partitions, too, which make up a `part` of all together with the others."""
        self._places.extend(numbers)
        self._part = part
        for model in self.awake.values():
            model.dispatcher.set_part(part)
        self._find_again()
        self._news.set()

    def _find_again(self) -> None:
        self._found_at = float("-inf")

    async def close(self) -> None:
        """Cancel the tasks."""
        for model in self.at_work:
            await model.close()

    async def take(self, event: Any) -> None:
        """Take a record."""
        message = event.message
        window, model = self._shared.assignment.window(message.tp), self._readers.get(message.topic)
        # If there is no window, the partition was revoked, and Kafka redelivers the record.
        is_current = message.generation_id == self._app.consumer_generation_id
        if is_current and window is not None and model is not None:
            await model.take(window, event)

    async def run(self) -> None:
        """Wake models and put them to sleep until cancelled."""
        watching = watched(asyncio.create_task(self._watch()), self._app.crash)
        try:
            while True:
                self._news.clear()
                try:
                    await self._step()
                except Exception:  # noqa: BLE001  the next step tries again
                    _log.exception("models could not be woken or put to sleep")
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS if self._added.is_assigned else HURRY_SECONDS):
                        await self._news.wait()
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        """Look up the ends of partitions until cancelled; in its own task, so a slow broker delays no wake."""
        while True:
            try:
                if self._added.is_assigned:
                    await self._look()
            except OSError as error:
                _log.info("the ends of partitions are unknown: %s", error)
                await asyncio.sleep(LOOK_SECONDS)
            except Exception:  # noqa: BLE001  the next look tries again
                _log.exception("the ends of partitions are unknown")
                await asyncio.sleep(LOOK_SECONDS)
            await asyncio.sleep(HURRY_SECONDS)

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._found_at + (HURRY_SECONDS if self._missing else FIND_SECONDS):
            # Before it: models or partitions that are added meanwhile need another lookup.
            self._found_at = self._looked_at = now
            try:
                await self._places.find(self._by_topic)
            except BaseException:
                self._find_again()
                raise
        elif now >= self._looked_at + LOOK_SECONDS:
            await self._places.look()
            self._looked_at = now
        else:
            return
        self._news.set()

    @property
    def _missing(self) -> bool:
        """Whether a topic of an open batch has not been found yet."""
        return any(
            not self._places.has(topic)
            for name in self.open_batches
            if name in self._configured
            for topic in _topics(name)
        )

    async def _step(self) -> None:
        if not self._added.is_assigned:
            return
        await self._retire()
        await self._wake_all()
        await self._put_to_sleep(asyncio.get_running_loop().time())
        await self._added.commit_again()

    async def _wake_all(self) -> None:
        """Read all partitions of awake models, and of those that must wake."""
        names = {self._by_topic[topic] for topic in self._places.with_records if topic in self._by_topic}
        names |= self.awake.keys() | self._sleepless
        names.update(name for name in self.open_batches if name in self._configured)
        found = self._places.take([topic for name in names - self._leaving.keys() for topic in _topics(name)])
        if not found:
            return
        for tp in found:
            if tp.topic not in self._readers:
                self._make(self._by_topic[tp.topic])
            self._readers[tp.topic].partitions.add(tp)
        starts = {tp: place.start for tp, place in found.items()}
        ends = {tp: place.end for tp, place in found.items()}
        windows = {
            tp: PartitionWindow(PartitionHandle(self._app, tp), number=self._places.number(tp)) for tp in found
        }
        self._shared.assignment.add(windows, ends)
        if not await self._added.add(starts):
            self._give_back(starts, ends)

    def _make(self, name: str) -> None:
        one = self._configured[name]
        model = AwakeModel(name, one, self._shared, self._app.crash)
        model.dispatcher.set_part(self._part)
        self.awake[name] = model
        self._readers |= dict.fromkeys(_topics(name), model)

    async def _put_to_sleep(self, now: float) -> None:
        for name, model in list(self.awake.items()):
            windows = [self._shared.assignment.window(tp) for tp in model.partitions]
            if not model.is_idle or any(windows) or name in self.open_batches or name in self._sleepless:
                model.busy_at = now
            elif now >= model.busy_at + SLEEP_SECONDS:
                if (starts := await self._added.remove(model.partitions)) is None:
                    model.busy_at = now
                    continue
                self._give_back(starts)
                await self._remove(name).close()

    async def _retire(self) -> None:
        """Stop the work of models whose calls have changed; their records are read again."""
        for name, model in list(self.awake.items()):
            if model.follows(self._configured[name]):
                continue
            model.dispatcher.leave()
            self._give_back(await self._added.remove(model.partitions, is_forced=True) or {})
            model.held_requests.clear()
            model.dispatcher.forget_waiting()
            self._leaving[name] = self._remove(name)
        self._places.keep(self._by_topic.keys())
        for name, model in list(self._leaving.items()):
            if model.is_idle:
                await self._leaving.pop(name).close()

    def _give_back(self, starts: Mapping[TP, Start], ends: Mapping[TP, int] | None = None) -> None:
        """Stop reading these partitions."""
        self._shared.assignment.remove(starts)
        self._places.put(starts, ends)
        for tp in starts:
            self._readers[tp.topic].partitions.discard(tp)

    def _remove(self, name: str) -> AwakeModel:
        for topic in _topics(name):
            del self._readers[topic]
        return self.awake.pop(name)


def _topics(model: str) -> tuple[str, str]:
    """The names of a model's topics."""
    return topics.express(model).name, topics.requests(model).name
