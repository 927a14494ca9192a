"""The faults of a simulated run: kills, stops, isolation, clock steps, copies, false records, refused objects."""

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from support.simchecks import Job
from support.simgroup import ProcessorsGroup
from support.simlog import Group, MemoryLog
from support.simstages import COMMANDS, OUTCOMES, REQUESTS
from support.simtime import Process, SimulatedLoop

from tidemill.schemas import ids
from tidemill.schemas.log import codec

PROCESSES_MAX = 3
STEPPING_SHARE = 0.3
"""Share of the runs in which clocks are stepped."""
STEP_SECONDS_MAX = 900.0
ZOMBIE_SECONDS_MAX = 40.0
BACK_SECONDS_MAX = 4.0
REFUSED_SECONDS_MAX = 40.0
SILENT_SECONDS_MAX = 10.0
BACK_SHARE = 0.5
"""Share of isolated processors that join again."""
HOLDER_SHARE = 0.3
ISOLATED_SHARE = 0.4
HANDOVERS_EVERY = 3
"""Every third run has long calls, and many hand-overs of partitions with calls in flight."""


class Faults:
    """What happens to the processes of a run (`simworld.SimulatedWay`)."""

    loop: SimulatedLoop
    log: MemoryLog
    groups: dict[str, Group]

    def __init__(self, seed: int, *, are_back: bool = False) -> None:
        """Let no fault happen yet; if processors `are_back`, those that lose their group join again soon."""
        self.seed = seed
        self.chance = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.cuts = 0
        self.torn = 0
        self.refusals = 0
        self._refused: dict[str, tuple[str, ...]] = {}
        """By batch: prefixes of the keys that the store refuses for a while."""
        self._at_once: list[asyncio.Task[None]] = []
        """What goes on while other faults come."""
        self.steps_clocks = self.chance.random() < STEPPING_SHARE
        self.are_back = are_back
        self.has_handovers = are_back or seed % HANDOVERS_EVERY == 2
        self._members: list[tuple[str, Any]] = []
        self.jobs: list[Job] = []

    def outlasted(self, process: Process) -> int:
        """Note that calls of a process may be repeated; returns their number."""
        raise NotImplementedError

    async def _join(self, stage: str) -> None:
        raise NotImplementedError

    def tear(self, member) -> None:
        """Replace a results process that found its tables torn."""
        self.torn += 1
        self._end("results", member)
        self._begin(self._one_more("results"))

    async def _strike(self, until: float) -> None:
        every = self.chance.choice((2, 6, 20))
        while (now := self.loop.time()) < until:
            await asyncio.sleep(min(self.chance.expovariate(1 / every), until - now))
            await self.chance.choices(
                (
                    self._kill,
                    self._cut_power,
                    self._leave,
                    self._one_more,
                    self._copy,
                    self._poison,
                    self._cut_off,
                    self._refuse,
                    self._step,
                    self._hand_over,
                    self._fall_silent,
                ),
                (8, 1, 3, 3, 3, 4, 3, 4, 8 if self.steps_clocks else 0, 30 if self.has_handovers else 3, 1),
            )[0]()
        await asyncio.gather(*self._at_once)
        for stage in self.groups:
            if not self._alive(stage):
                await self._join(stage)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something happen while other faults come."""
        self._at_once.append(self.loop.create_task(work))

    def _alive(self, stage: str) -> list:
        return [member for name, member in self._members if name == stage and member.process.is_alive]

    async def _kill(self) -> None:
        stage = self.chance.choice(list(self.groups))
        if alive := self._alive(stage):
            self._end(stage, self.chance.choice(alive))
        await self._one_more(stage)

    async def _cut_power(self) -> None:
        for stage, member in list(self._members):
            if member.process.is_alive:
                self._end(stage, member)
        for stage in self.groups:
            await self._one_more(stage)

    def _end(self, stage: str, member) -> None:
        self.kills[stage] += 1
        self.outlasted(member.process)
        member.process.kill()
        self.loop.create_task(self.groups[stage].lose(member))

    async def _leave(self) -> None:
        stage = self.chance.choice(list(self.groups))
        alive = self._alive(stage)
        if len(alive) > 1:
            self._begin(self.groups[stage].leave(self.chance.choice(alive)))

    async def _cut_off(self) -> None:
        """Isolate a process from its group; it goes on beside its successor for a while."""
        stage = self.chance.choice([stage for stage in self.groups if stage != "ingest"])
        if not (alive := self._alive(stage)):
            return
        member = self.chance.choice(alive)
        if stage == "results":
            self.cuts += 1
        self._begin(self._isolate(stage, member))
        await self._one_more(stage)

    async def _isolate(self, stage: str, member: Any) -> None:
        group = self.groups[stage]
        if isinstance(group, ProcessorsGroup) and member.is_cut:
            return
        await group.expel(member)
        self.outlasted(member.process)
        await asyncio.sleep(self.chance.uniform(0, BACK_SECONDS_MAX if self.are_back else ZOMBIE_SECONDS_MAX))
        if not member.process.is_alive:
            return
        if isinstance(group, ProcessorsGroup) and (self.are_back or self.chance.random() < BACK_SHARE):
            await group.come_back(member)
        else:
            self._end(stage, member)

    def _processors(self) -> tuple[str, ProcessorsGroup]:
        """A group of processors."""
        stage = self.chance.choice([name for name in self.groups if name not in {"ingest", "results"}])
        group = self.groups[stage]
        assert isinstance(group, ProcessorsGroup)
        return stage, group

    async def _hand_over(self) -> None:
        """Share out the partitions of processors anew, or end a process while some wait for calls in flight."""
        stage, group = self._processors()
        if not (alive := self._alive(stage)):
            return
        holders = [mark.member for mark in group.marks.values() if mark.member in alive]
        if holders and self.chance.random() < HOLDER_SHARE:
            self._end(stage, self.chance.choice(holders))
        elif holders and self.chance.random() < HOLDER_SHARE:
            self._end(stage, self.chance.choice(alive))
        elif self.are_back and self.chance.random() < ISOLATED_SHARE:
            self._begin(self._isolate(stage, self.chance.choice(alive)))
            await self._one_more(stage)
        elif len(alive) == PROCESSES_MAX or (len(alive) > 1 and self.chance.random() < 0.5):
            self._begin(group.leave(self.chance.choice(alive)))
        else:
            await self._one_more(stage)

    async def _fall_silent(self) -> None:
        """Let the coordinator of processors answer no process for a while."""
        _, group = self._processors()
        self._begin(group.fall_silent(self.chance.uniform(0, SILENT_SECONDS_MAX)))

    async def _refuse(self) -> None:
        """Let the store refuse the objects and the key of one batch; everything else goes on."""
        if not self.jobs:
            return
        batch = self.chance.choice(self.jobs).batch
        number = int(batch.id.removeprefix(ids.BATCH_PREFIX), 16)
        files = (ids.derived_file_id(batch.id, kind) for kind in ("output", "error"))
        names = (f"key of {batch.id}", f"parts/{batch.id}", f"files/in{number}", *files)
        self._refused[batch.id] = tuple(self.chance.sample(names, self.chance.randint(1, len(names))))
        self.refusals += 1

        async def end() -> None:
            await asyncio.sleep(self.chance.uniform(0, REFUSED_SECONDS_MAX))
            self._refused.pop(batch.id, None)

        self._begin(end())

    def refuses(self, key: str) -> bool:
        """Whether the store refuses an object at the moment."""
        return any(name in key for names in self._refused.values() for name in names)

    async def _one_more(self, stage: str = "") -> None:
        stage = stage or self.chance.choice(list(self.groups))
        if len(self._alive(stage)) < PROCESSES_MAX:
            await self._join(stage)

    async def _step(self) -> None:
        """Set the clock of a process to a wrong or the right time."""
        stage = self.chance.choice(list(self.groups))
        if alive := self._alive(stage):
            wrong = self.chance.uniform(-STEP_SECONDS_MAX, STEP_SECONDS_MAX)
            self.chance.choice(alive).process.ahead = self.chance.choice((0.0, wrong, wrong))

    async def _copy(self) -> None:
        """Publish a range of requests again."""
        records = self.log.records[self.chance.choice(self.log.places(REQUESTS))]
        start = self.chance.randint(0, len(records))
        for record in records[start : start + 10]:
            self.log.append(REQUESTS, record.key, record.value, record.headers)

    async def _poison(self) -> None:
        """Publish invalid or false records, also about existing batches."""
        batch_id = self.chance.choice([job.batch.id for job in self.jobs] or ["batch_x"])
        lines = ((codec.KIND, codec.LINES), ("tidemill-batch", batch_id.encode()))
        topic, headers, value = self.chance.choice(
            (
                (COMMANDS, (), b"\xff"),
                (COMMANDS, ((codec.KIND, None),), b'{"v":1,"kind":"batch_created"}'),
                (OUTCOMES, (("\\xff", None),), b"{"),
                (OUTCOMES, (*lines, ("tidemill-marks", b"[[0,3,false]]")), b"x\n"),
                (OUTCOMES, (*lines, ("tidemill-marks", b"[[10000000,2,false]]")), b"x\n"),
                (OUTCOMES, (*lines, ("tidemill-marks", None)), b"x\n"),
                (REQUESTS, (("tidemill-batch", batch_id.encode()), ("tidemill-first", b"9" * 400)), b"x"),
                (REQUESTS, (), b""),
            )
        )
        self.log.append(topic, batch_id, value, headers)
