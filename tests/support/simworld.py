"""The way of a line through api, ingest, processors and results, on simulated time, with crashes of each.

A run depends only on its seed: batches, cancels, deadlines, replies, kills, duplicate records and late writes.
`SimulatedWay(seed).run()` returns once every batch is over, and checks invariants 1 to 5 of the design (a batch's
lines, status, files, bill, and repeated calls).
"""

import asyncio
import itertools
import random
from collections import Counter, defaultdict
from decimal import Decimal

import orjson
from support import simtime
from support.facts import model_of, original_of
from support.simchecks import PARTITIONS, Job, Seen
from support.simingest import IngestProcess, packed
from support.simlog import Group, MemoryLog, Place
from support.simstages import (
    BATCHES,
    COMMANDS,
    MODELS,
    OTHER_REQUESTS,
    OUTCOMES,
    REQUESTS,
    SECRETS,
    ProcessorsProcess,
    ResultsProcess,
)
from support.simtime import Process, SimulatedLoop
from support.simupstream import Upstream

from tidemill.configuration import projects
from tidemill.configuration.settings import Settings
from tidemill.results.resources import Limits
from tidemill.schemas import ids
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import BatchCreated, CancelRequested, DeleteRequested, InputRef
from tidemill.schemas.log.part import file_key
from tidemill.schemas.resources.batch import Batch, Extras, Status
from tidemill.schemas.resources.bill import Tariff
from tidemill.sealing.cipher import Cipher

BATCHES_MAX = 4
DEDUPE_EVERY = 3
"""Of three batches, two ask equal lines once."""
LINES_MAX = 70
FAULTS_SECONDS = 60.0
END_SECONDS_MAX = 4_000.0
STEPPING_SHARE = 0.3
"""Share of the runs in which clocks are stepped."""
STEP_SECONDS_MAX = 900.0
CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
PROMPTS = 5
PROMPT_BYTES = 64
"""Every second seed has lines with the same prompt one after the other."""
PROCESSES_MAX = 3
IN_FLIGHT_MAX = 5
UNACKNOWLEDGED_MAX = 2
DELETED_SHARE = 0.3


class Keys:
    """Wraps keys, with the project in clear text."""

    async def wrap(self, project, place, key):
        return "k", Cipher(bytes(32)).seal(key, f"{project}/{place}".encode())

    async def unwrap(self, project, place, name, wrapped):
        del name
        return Cipher(bytes(32)).open(wrapped, f"{project}/{place}".encode())


KEYS = Keys()
ZOMBIE_SECONDS_MAX = 40.0
REFUSED_SECONDS_MAX = 40.0


class SimulatedWay:
    """One run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.objects: dict[str, bytes] = {}
        self.changelogs: defaultdict[tuple[str, int], dict[bytes, bytes]] = defaultdict(dict)
        self.kills: Counter[str] = Counter()
        self.cuts = 0
        self.torn = 0
        self.refusals = 0
        self._refused: dict[str, tuple[str, ...]] = {}
        """By batch: prefixes of the keys that the store refuses for a while."""
        self._zombies: list[asyncio.Task[None]] = []
        self.repeats_max = 0
        self.steps_clocks = self.chance.random() < STEPPING_SHARE
        self.calls: Counter[tuple[str, int]] = Counter()
        self.asked: defaultdict[str, list[list[tuple[str, int]]]] = defaultdict(list)
        """The lines of each call that was answered, by its id, which a later process may use again."""
        self._under_way: dict[tuple[str, int], Process] = {}
        self._tokens = itertools.count()
        self._members: list[tuple[str, object]] = []
        self.jobs: list[Job] = []
        self.deleted: set[str] = set()
        self._seen = Seen(self)
        self.wrapper = KEYS if seed % 3 == 0 else None
        """Every third run is encrypted."""
        self._inputs_per_call = 4 if seed % 4 == 2 else 1
        """Every fourth run asks for several lines at once."""
        model = {
            "backends": [{"url": "http://backend/v1", "unacknowledged_max": UNACKNOWLEDGED_MAX}],
            "max_in_flight": IN_FLIGHT_MAX,
            "prefix_bytes": PROMPT_BYTES if seed % 2 else None,
            "endpoints": [EMBEDDINGS, CHAT],
            "inputs_per_call": self._inputs_per_call,
        }
        self._endpoint = EMBEDDINGS if self._inputs_per_call > 1 else CHAT
        self.at_work_max = 1 + seed % 2 if seed % 5 == 2 else None
        """Every fifth run has a queue."""
        self.models = MODELS if seed % 4 == 1 else MODELS[:1]
        self._settings = Settings(
            models=dict.fromkeys(self.models, model),  # type: ignore[arg-type]
            limits=projects.Limits(models_per_batch_max=2, batches_at_work_max=self.at_work_max),
            grace_seconds=2,
        )
        self._limits = Limits(
            part_bytes=self.chance.choice((500, 3_000)),
            part_age_seconds=self.chance.choice((0.5, 3)),
            grace_seconds=self._settings.grace_seconds,
            output_life_seconds=3600,
            tariff_of=self._tariff,
        )

    def run(self) -> None:
        """Run until all batches are over, then check; an `AssertionError` names the fault."""
        with packed(self.seed // 4):
            simtime.run(self._main)
        self._seen.check()

    def token(self) -> str:
        """A new token."""
        return f"{next(self._tokens):08x}"

    def tear(self, member) -> None:
        """Replace a results process that found its tables torn."""
        self.torn += 1
        self._end("results", member)
        self._zombies.append(self.loop.create_task(self._one_more("results")))

    def upstream(self, process: Process) -> Upstream:
        """The backend as a process reaches it."""
        return Upstream(self, process)

    def called(self, place: tuple[str, int], process: Process) -> None:
        """Note a call whose answer is final."""
        self.calls[place] += 1
        self._under_way[place] = process
        under_way = sum(one is process for one in self._under_way.values())
        assert under_way <= (IN_FLIGHT_MAX + UNACKNOWLEDGED_MAX) * self._inputs_per_call, "a kill repeats too many"

    def outlasted(self, process: Process) -> None:
        """Note that calls of a process may be repeated: it was killed, or left its partitions without them."""
        kept = {place: caller for place, caller in self._under_way.items() if caller is not process}
        self.repeats_max += len(self._under_way) - len(kept)
        self._under_way = kept

    def aborted(self, places: list[tuple[str, int]], process: Process) -> None:
        """Note the abort of a call of a closed batch: after a kill no process would repeat it."""
        for place in places:
            if self._under_way.get(place) is process:
                del self._under_way[place]

    def arrived(self, headers, value: bytes) -> None:
        """Note outcomes that the log has acknowledged."""
        batch_id, marks = codec.lines_marks(headers, len(value))
        for mark in marks:
            self._under_way.pop((batch_id, mark.index), None)

    async def _main(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.log = MemoryLog(loop, dict.fromkeys((COMMANDS, OUTCOMES, REQUESTS, OTHER_REQUESTS), PARTITIONS))
        self.groups = {
            "ingest": Group(self.log, COMMANDS),
            "processors": Group(self.log, REQUESTS),
            "results": Group(self.log, COMMANDS, OUTCOMES),
        }
        if len(self.models) > 1:
            self.groups["others"] = Group(self.log, OTHER_REQUESTS)
        for stage in self.groups:
            await self._join(stage)
        api = [loop.create_task(self._create(number)) for number in range(self.chance.randint(1, BATCHES_MAX))]
        await self._strike(loop.time() + FAULTS_SECONDS)
        await asyncio.gather(*api)
        async with asyncio.timeout(END_SECONDS_MAX):
            while not self._is_over():
                await self.log.growth()
        for _, member in self._members:
            assert not member.process.errors, member.process.errors

    async def _join(self, stage: str) -> None:
        group = self.groups[stage]
        member: IngestProcess | ProcessorsProcess | ResultsProcess
        if stage == "ingest":
            member = IngestProcess(self, group, self._settings)
        elif stage == "results":
            member = ResultsProcess(self, group, self._limits)
        else:
            member = ProcessorsProcess(self, group, self._settings, MODELS[stage == "others"])
        self._members.append((stage, member))
        await group.join(member)

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
                ),
                (8, 1, 3, 3, 3, 4, 3, 4, 8 if self.steps_clocks else 0),
            )[0]()
        await asyncio.gather(*self._zombies)
        for stage in self.groups:
            if not self._active_batches(stage):
                await self._join(stage)

    def _active_batches(self, stage: str) -> list:
        return [member for name, member in self._members if name == stage and member.process.is_alive]

    async def _kill(self) -> None:
        stage = self.chance.choice(list(self.groups))
        if active_batches := self._active_batches(stage):
            self._end(stage, self.chance.choice(active_batches))
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
        active_batches = self._active_batches(stage)
        if len(active_batches) > 1:
            await self.groups[stage].leave(self.chance.choice(active_batches))

    async def _cut_off(self) -> None:
        """Expel a results process from its group; it goes on beside its successor for a while."""
        if not (active_batches := self._active_batches("results")):
            return
        member = self.chance.choice(active_batches)
        self.cuts += 1

        async def cut_off() -> None:
            await self.groups["results"].expel(member)
            await asyncio.sleep(self.chance.uniform(0, ZOMBIE_SECONDS_MAX))
            if member.process.is_alive:
                self._end("results", member)

        self._zombies.append(self.loop.create_task(cut_off()))
        await self._one_more("results")

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

        self._zombies.append(self.loop.create_task(end()))

    def refuses(self, key: str) -> bool:
        """Whether the store refuses an object at the moment."""
        return any(name in key for names in self._refused.values() for name in names)

    async def _one_more(self, stage: str = "") -> None:
        stage = stage or self.chance.choice(list(self.groups))
        if len(self._active_batches(stage)) < PROCESSES_MAX:
            await self._join(stage)

    async def _step(self) -> None:
        """Set the clock of a process to a wrong or the right time."""
        stage = self.chance.choice(list(self.groups))
        if active_batches := self._active_batches(stage):
            wrong = self.chance.uniform(-STEP_SECONDS_MAX, STEP_SECONDS_MAX)
            self.chance.choice(active_batches).process.ahead = self.chance.choice((0.0, wrong, wrong))

    async def _copy(self) -> None:
        """Publish a range of requests again."""
        records = self.log.records[Place(REQUESTS, self.chance.randrange(PARTITIONS))]
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

    async def _create(self, number: int) -> None:
        await asyncio.sleep(self.chance.uniform(0, FAULTS_SECONDS / 2))
        now = int(self.loop.now())
        expires_at = now + self.chance.choice((10, 40, 86_400, 86_400))
        batch = Batch(
            id=f"batch_{number:032x}", endpoint=self._endpoint, input_file_id="file-x",
            completion_window="24h", status=Status.VALIDATING, created_at=now, expires_at=expires_at,
            tidemill=Extras(dedupe="all" if number % DEDUPE_EVERY else None),
        )  # fmt: skip
        lines = self.chance.randint(1, LINES_MAX)
        key = f"files/in{number}"
        self.objects[key] = b"".join(self._line(batch, index) for index in range(lines))
        cancel = self.chance.uniform(0, 20) if self.chance.random() < 0.3 else None
        self.jobs.append(Job(batch=batch, lines=lines, cancel_at=cancel))
        created = BatchCreated(
            project="default", batch=batch, input=InputRef(key=key, bytes=len(self.objects[key]))
        )
        self.log.append(COMMANDS, batch.id, codec.encode(created))
        if cancel is not None:
            await asyncio.sleep(cancel)
            request = CancelRequested(batch_id=batch.id, at=int(self.loop.now()))
            self.log.append(COMMANDS, batch.id, codec.encode(request))
        if self.chance.random() < DELETED_SHARE:
            while batch.id not in self._seen.over():
                await self.log.growth()
            await asyncio.sleep(self.chance.uniform(0, 20))
            shown = self._seen.shown(batch.id)[-1]
            kinds = tuple(kind for kind, _ in shown.tidemill.receipt.files) if shown.tidemill.receipt else ()
            self.deleted.add(batch.id)
            request = DeleteRequested(batch_id=batch.id, project="default", files=kinds, at=int(self.loop.now()))
            self.log.append(COMMANDS, batch.id, codec.encode(request))
            await self._gone(batch.id, {file_key(ids.derived_file_id(batch.id, kind)) for kind in kinds})

    async def _gone(self, batch_id: str, prefixes: set[str]) -> None:
        """Wait until a deletion is complete: a write of a killed process may still add an object after it."""
        keys = {key for key in self.objects if key.startswith(tuple(prefixes))}
        while keys or self._is_shown(batch_id):
            # There is no event for a removed object.
            await asyncio.sleep(1)
            keys &= self.objects.keys()

    def _is_shown(self, batch_id: str) -> bool:
        records = self.log.records[Place(BATCHES, 0)]
        secrets = self.log.records[Place(SECRETS, 0)]
        keys = {record.key: record.value for record in secrets if record.key.startswith(f"{batch_id}/")}
        is_erased = all(value is None for value in keys.values())
        return not is_erased or all(record.value is not None for record in records if record.key == batch_id)

    def _tariff(self, model: str | None, window: str) -> Tariff:
        """A price that changes with each call."""
        del model, window
        return Tariff(input_per_million=Decimal(len(self._members)), output_per_million=Decimal("0.3"))

    def _line(self, batch: Batch, index: int) -> bytes:
        original = index if batch.tidemill.dedupe is None else original_of(index, self.models)
        text = f"{str(original % PROMPTS) * PROMPT_BYTES} {batch.id} {original}"
        asked = {"messages": [text]} if self._endpoint == CHAT else {"input": text}
        body = {"model": model_of(index, self.models), **asked}
        line = {"custom_id": f"id-{index}", "method": "POST", "url": self._endpoint, "body": body}
        return orjson.dumps(line) + b"\n"

    def _is_over(self) -> bool:
        return len(self._seen.over()) == len(self.jobs)
