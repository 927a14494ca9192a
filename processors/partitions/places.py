"""The partitions of sleeping models: where to start reading each, and where it ends.

One request asks for the ends of all of them, so a thousand sleeping models cost next to nothing.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from tidemill.faust.added_partitions import TP, Start
from tidemill.kafka.offsets import Offsets


@dataclass(slots=True)
class Place:
    """The start and the end of one partition."""

    start: Start
    end: int
    """Its end offset, at some time after the assignment."""


class Places:
    """The places of the partitions that are not read at the moment."""

    def __init__(self, offsets: Offsets, group: str, partitions: int) -> None:
        """Start without partitions.

        Args:
            offsets: Asks the brokers.
            group: The consumer group.
            partitions: How many partitions its members divide; the owner of partition `n` of these owns the
                partitions `n`, `n + partitions`, … of each topic.
        """
        self._offsets = offsets
        self._group = group
        self._partitions = partitions
        self._numbers: frozenset[int] = frozenset()
        self._places: defaultdict[str, dict[TP, Place]] = defaultdict(dict)
        """By topic."""
        self._taken: set[TP] = set()
        self._unplaced: set[TP] = set()
        """Own partitions that exist but have no place, since a broker did not report their ends."""

    def reset(self, numbers: Collection[int]) -> None:
        """Forget all places: the process owns these partitions from now on."""
        self._numbers = frozenset(numbers)
        self._places.clear()
        self._taken.clear()
        self._unplaced = set()

    def extend(self, numbers: Collection[int]) -> None:
        """The process reads these partitions, too."""
        self._numbers |= set(numbers)

    def number(self, tp: TP) -> int:
        """The partition of the group whose owner reads this one."""
        return int(tp.partition) % self._partitions

    def keep(self, topics: Collection[str]) -> None:
        """Forget the partitions of other topics."""
        for topic in self._places.keys() - topics:
            del self._places[topic]

    def has(self, topic: str) -> bool:
        """Whether all own partitions of a topic were found, or the process owns none."""
        if any(tp.topic == topic for tp in self._unplaced):
            return False
        return topic in self._places or not self._numbers

    @property
    def with_records(self) -> set[str]:
        """The topics that have records to read."""
        return {
            topic
            for topic, places in self._places.items()
            if any(place.end > place.start.position for place in places.values())
        }

    async def find(self, topics: Iterable[str]) -> None:
        """Look up the own partitions of those topics that exist by now.

        Raises:
            OSError: No broker answers.
        """
        existing = await self._offsets.partitions()
        self._unplaced = fresh = {
            tp
            for topic in topics
            for number in existing.get(topic, ())
            if self.number(tp := TP(topic, number)) in self._numbers
            and tp not in self._places[topic]
            and tp not in self._taken
        }
        await self._look_up(fresh)
        self._unplaced = {tp for tp in fresh if tp not in self._places[tp.topic] and tp not in self._taken}

    async def look(self) -> None:
        """Look up the current ends of the partitions.

        Raises:
            OSError: No broker answers.
        """
        lost = set()
        ends = await self._offsets.next([tp for places in self._places.values() for tp in places])
        for tp, end in ends.items():
            if (place := self._places[tp.topic].get(tp)) is not None:
                place.end = end
                if end < place.start.position:
                    lost.add(TP(*tp))
        await self._look_up(lost)

    def take(self, topics: Iterable[str]) -> dict[TP, Place]:
        """Hand over the partitions of some topics, to be read."""
        taken: dict[TP, Place] = {}
        for topic in topics:
            if places := self._places.get(topic):
                taken |= places
                self._places[topic] = {}
        self._taken |= taken.keys()
        return taken

    def put(self, starts: Mapping[TP, Start], ends: Mapping[TP, int] | None = None) -> None:
        """Take back partitions that are not read any more; without `ends`, none has a record after its start."""
        self._taken -= starts.keys()
        for tp, start in starts.items():
            self._places[tp.topic][tp] = Place(start, start.position if ends is None else ends[tp])

    async def _look_up(self, tps: Collection[TP]) -> None:
        if not tps:
            return
        committed = await self._offsets.committed(self._group, tps)
        ends = await self._offsets.next(tps)
        # A recreated topic may end before the offset that the group committed for the old one.
        known = {tp for tp, offset in committed.items() if offset <= ends.get(tp, offset)}
        first = await self._offsets.first([tp for tp in tps if tp not in known])
        for tp, end in ends.items():
            if tp in known:
                self._places[tp.topic][TP(*tp)] = Place(Start(committed[tp], is_committed=True), end)
            elif tp in first:
                self._places[tp.topic][TP(*tp)] = Place(Start(first[tp], is_committed=False), end)
