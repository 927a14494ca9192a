"""The consumer group of processors on simulated time, with the metadata of its committed offsets.

The protocol is Kafka's eager one: all members leave their partitions, each once it has heard of the rebalance, and
get new ones when the last has left. Only members of the current generation may commit. A member that stops stays
in the group until it has finished.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from faust.types import TP
from support import simlog
from support.simlog import SESSION_SECONDS, Group, MemoryLog, Place, Seat
from support.simtime import WAY_SECONDS_MAX

from tidemill.processors.partitions.handover import STALE_SECONDS
from tidemill.schemas.log import topics

HEARTBEAT_SECONDS = SESSION_SECONDS / 3
_EPSILON = 1e-6


class Member(simlog.Member, Protocol):
    """A member that may stop gracefully, or be isolated from the coordinator."""

    is_cut: bool

    def expelled(self) -> None:
        """Note that the group goes on without the member, which does not know."""
        ...

    def heard(self) -> None:
        """Note that the coordinator answers again."""
        ...

    async def finish(self) -> None:
        """Finish the work under way before the process ends, within a bound."""
        ...


class Offset(NamedTuple):
    """A committed offset, as the coordinator returns it."""

    offset: int
    metadata: str


class Mark(NamedTuple):
    """The metadata of one committed offset, and who wrote it when."""

    text: str
    member: Any
    at: float


class ProcessorsGroup(Group):
    """The group; `marks` are those of the partitions of `tidemill.processors`."""

    def __init__(self, log: MemoryLog, topic: str, chance: random.Random) -> None:
        super().__init__(log, topic)
        self._chance = chance
        self._leaving: set[Any] = set()
        self._syncing: dict[Any, asyncio.Task[Any]] = {}
        self._assigned: dict[Any, list[Place]] = {}
        self.marks: dict[int, Mark] = {}
        self.is_silent = False

    async def leave(self, member: Any) -> None:
        """Stop a member gracefully: it leaves when it has finished."""
        process = member.process
        if member in self._leaving or not process.is_alive or not self.has(member):
            return
        self._leaving.add(member)
        await asyncio.wait([process.start(member.finish())])
        seat = self.seat(member)
        if process.is_alive:
            self._keep(seat)
            process.kill()
        async with self._turn:
            if seat in self._seats:
                self._seats.remove(seat)
                await self._rebalance()

    async def come_back(self, member: Any) -> None:
        """Let a member that was expelled know: it leaves its partitions, and joins anew."""
        async with self._turn:
            seat = next((seat for seat in self._expelled if seat.member is member), None)
            if seat is None or not member.process.is_alive:
                member.is_cut = False
                return
            await self._rejoin(seat)
            member.is_cut = False
            member.heard()
            if member.process.is_alive:
                self._expelled.remove(seat)
                self._seats.append(Seat(member))
                member.process.owns_partitions = True
                await self._rebalance()

    async def expel(self, member: Any) -> None:
        """Isolate a member: it does not reach the coordinator, which removes it at the end of its session."""
        member.is_cut = True
        await asyncio.sleep(SESSION_SECONDS)
        async with self._turn:
            if member.process.is_alive and self.has(member):
                self._expel(self.seat(member))
                await self._rebalance()

    async def fall_silent(self, seconds: float) -> None:
        """Answer no process for a while, and end no session meanwhile."""
        async with self._turn:
            self.is_silent = True
            await asyncio.sleep(seconds)
            self.is_silent = False
            for seat in self._seats:
                seat.member.heard()

    def is_leaving(self, member: Any) -> bool:
        """Whether a member stops."""
        return member in self._leaving

    def read(self, seat: Seat, places: Iterable[Place]) -> None:
        """Deliver the records of these partitions from now on."""
        seat.feeds += [seat.member.process.start(self._feed(seat, place)) for place in places]

    def commit(self, member: Any, generation: int, offsets: Mapping[TP, Offset]) -> None:
        """Commit offsets with their metadata.

        Raises:
            ConnectionRefusedError: The member is none of this generation.
        """
        if not self.has(member) or generation != self._generation:
            raise ConnectionRefusedError("fenced")
        now = member.process.loop.time()
        for tp, offset in offsets.items():
            assert tp.topic == topics.PROCESSORS.name
            before = self.marks.pop(tp.partition, None)
            if before is not None and before.member is not member:
                assert now >= before.at + STALE_SECONDS, (
                    f"a mark of {now - before.at:.1f} s was removed by another"
                )
            if offset.metadata:
                self.marks[tp.partition] = Mark(offset.metadata, member, now)

    def committed(self, tps: Iterable[TP]) -> dict[TP, Offset]:
        """The committed offsets of some partitions."""
        found = {tp: self.marks.get(tp.partition) for tp in tps}
        return {tp: Offset(0, mark.text if mark else "") for tp, mark in found.items()}

    async def _rebalance(self) -> None:
        await asyncio.gather(*(self._rejoin(seat) for seat in list(self._seats)))
        living = [seat for seat in self._seats if seat.member.process.is_alive and not seat.member.is_cut]
        self._chance.shuffle(living)
        self._generation += 1
        for turn, seat in enumerate(living):
            places = [place for place in self._log.places(*self._topics) if place.partition % len(living) == turn]
            syncing = self._sync(seat, places, self._generation)
            self._syncing[seat.member] = asyncio.get_running_loop().create_task(syncing)

    async def _rejoin(self, seat: Seat) -> None:
        """Let a member leave its partitions, as soon as it has heard of the rebalance."""
        member, process = seat.member, seat.member.process
        if (syncing := self._syncing.pop(member, None)) is not None:
            await asyncio.wait([syncing])
        if not (member.is_cut and seat in self._seats):
            await self._revoke(seat)
        if not process.is_alive and self._chance.random() < 0.5:
            # The others wait for the end of its session.
            await asyncio.sleep(self._chance.random() * SESSION_SECONDS)
        if process.is_alive and member.is_cut and seat in self._seats:
            await asyncio.sleep(SESSION_SECONDS)
            self._expel(seat)

    async def _revoke(self, seat: Seat) -> None:
        process = seat.member.process
        if process.is_alive and self._assigned.pop(seat.member, None):
            await asyncio.sleep(self._chance.random() * HEARTBEAT_SECONDS)
            if process.is_alive:
                await asyncio.wait([process.start(seat.member.revoke())])
        self._keep(seat)
        for feed in seat.feeds:
            feed.cancel()
        seat.acked, seat.feeds = {}, []

    def _expel(self, seat: Seat) -> None:
        self._seats.remove(seat)
        self._expelled.append(seat)
        if seat.member.process.is_alive:
            seat.member.process.owns_partitions = False
            seat.member.expelled()

    def _keep(self, seat: Seat) -> None:
        """Commit what a member has acknowledged."""
        if seat.member.process.is_alive and seat in self._seats and not seat.member.is_cut:
            self._committed.update(seat.acked)

    async def _sync(self, seat: Seat, places: list[Place], generation: int) -> None:
        """Give a member its partitions."""
        process = seat.member.process
        await asyncio.sleep(self._chance.random() * WAY_SECONDS_MAX)
        if not process.is_alive:
            return
        seat.generation, self._assigned[seat.member] = generation, places
        seat.feeds.append(process.start(self._commit(seat)))
        await asyncio.wait([process.start(seat.member.assign(places))])


class Coordinator:
    """The coordinator's client in a member's process, as `tidemill.faust.marks` uses it."""

    def __init__(self, group: ProcessorsGroup, member: Any) -> None:
        self._group = group
        self._member = member
        self._arrives_at = 0.0

    async def commit_offsets(self, assignment: object, offsets: Mapping[TP, Any]) -> None:
        """See `ProcessorsGroup.commit`; metadata comes with each offset."""
        del assignment
        given = {tp: Offset(offset.offset, offset.metadata) for tp, offset in offsets.items()}
        generation = self._group.seat(self._member).generation
        await self._ask(partial(self._group.commit, self._member, generation, given))

    async def fetch_committed_offsets(self, tps: Iterable[TP]) -> dict[TP, Offset]:
        """See `ProcessorsGroup.committed`."""
        return await self._ask(partial(self._group.committed, list(tps)))

    async def _ask(self, effect: Callable[[], Any]) -> Any:
        """Send a request. As in aiokafka, it takes effect even if its sender does not wait for the answer."""
        process, loop = self._member.process, self._member.process.loop
        process.check()
        if self._member.is_cut or self._group.is_silent:
            await asyncio.Event().wait()
        answer: asyncio.Future[Any] = loop.create_future()
        way = loop.time() + process.chance.random() * WAY_SECONDS_MAX
        self._arrives_at = max(self._arrives_at + _EPSILON, way)
        loop.call_at(self._arrives_at, self._arrive, effect, answer)
        found = await answer
        await process.pass_time()
        return found

    @staticmethod
    def _arrive(effect: Callable[[], Any], answer: "asyncio.Future[Any]") -> None:
        try:
            found = effect()
        except ConnectionRefusedError as error:
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(found)
