"""The way of a line through api, ingest, processors and results, on simulated time, with crashes of each.

A run depends only on its seed: batches, cancels, deadlines, replies, kills, duplicate records and late writes.
`SimulatedWay(seed).run()` returns once every batch is over, and checks invariants 1 to 5 of the design (a batch's
lines, status, files, bill, and repeated calls). No process calls a line whose result it knows to be on the log.
"""

import asyncio
import itertools
from collections import Counter, defaultdict
from decimal import Decimal

import orjson
from support import simtime
from support.facts import model_of, original_of
from support.results_limits import file_rules, limits
from support.simchecks import PARTITIONS, Job, Seen
from support.simfaults import Faults
from support.simgroup import ProcessorsGroup
from support.simingest import IngestProcess, packed
from support.simlog import Group, MemoryLog, Place
from support.simprocessors import ProcessorsProcess
from support.simstages import (
    BATCHES,
    COMMANDS,
    MODELS,
    OTHER_REQUESTS,
    OUTCOMES,
    REQUESTS,
    SECRETS,
    ResultsProcess,
)
from support.simtime import Process, SimulatedLoop
from support.simupstream import SLOW_SECONDS_MAX, Upstream

from tidemill.configuration import projects
from tidemill.configuration.settings import Settings
from tidemill.processors.partitions.completed_lines import CompletedLines
from tidemill.processors.partitions.handover import STALE_SECONDS
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
CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
PROMPTS = 5
PROMPT_BYTES = 64
"""Every second seed has lines with the same prompt one after the other."""
IN_FLIGHT_MAX = 5
UNACKNOWLEDGED_MAX = 2
DELETED_SHARE = 0.3
SLOW_SHARES = (0.03, 0.5)
"""Shares of calls that outlast the time in which a process leaves its partitions: in most runs, and in others."""
BACK_SLOW_SECONDS_MAX = 40.0
HANDOVER_SECONDS_MAX = STALE_SECONDS + 5
"""No partition waits longer for its former owner, beside the longest call."""
PARTITIONS_OF = dict.fromkeys((COMMANDS, OUTCOMES), PARTITIONS) | dict.fromkeys((REQUESTS, OTHER_REQUESTS), 4)


class Keys:
    """Wraps keys, with the project in clear text."""

    async def wrap(self, project, place, key):
        return "k", Cipher(bytes(32)).seal(key, f"{project}/{place}".encode())

    async def unwrap(self, project, place, name, wrapped):
        del name
        return Cipher(bytes(32)).open(wrapped, f"{project}/{place}".encode())


KEYS = Keys()


class SimulatedWay(Faults):
    """One run."""

    def __init__(self, seed: int, *, are_back: bool = False) -> None:
        """See `Faults`."""
        super().__init__(seed, are_back=are_back)
        self.objects: dict[str, bytes] = {}
        self.changelogs: defaultdict[tuple[str, int], dict[bytes, bytes]] = defaultdict(dict)
        self.repeats_max: Counter[tuple[str, int]] = Counter()
        """How often each line may be called again."""
        self.calls: Counter[tuple[str, int]] = Counter()
        self.asked: defaultdict[str, list[list[tuple[str, int]]]] = defaultdict(list)
        """The lines of each call that was answered, by its id, which a later process may use again."""
        self._under_way: dict[tuple[str, int], Process] = {}
        self._tokens = itertools.count()
        self.slow_seconds_max = BACK_SLOW_SECONDS_MAX if are_back else SLOW_SECONDS_MAX
        self.slow_share = SLOW_SHARES[self.has_handovers]
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
        self._limits = limits(
            files=file_rules(part_bytes=self.chance.choice((500, 3_000)), tariff_of=self._tariff),
            part_age_seconds=self.chance.choice((0.5, 3)),
            grace_seconds=self._settings.grace_seconds,
        )

    def run(self) -> None:
        """Run until all batches are over, then check; an `AssertionError` names the fault."""
        with packed(self.seed // 4):
            simtime.run(self._main)
        self._seen.check()

    def token(self) -> str:
        """A new token."""
        return f"{next(self._tokens):08x}"

    def upstream(self, process: Process, completed: CompletedLines) -> Upstream:
        """The backend as a process reaches it, which knows these completed lines."""
        return Upstream(self, process, completed)

    def called(self, place: tuple[str, int], process: Process) -> None:
        """Note a call whose answer is final."""
        self.calls[place] += 1
        if not process.owns_partitions:
            self.repeats_max[place] += 1
        self._under_way[place] = process
        under_way = sum(one is process for one in self._under_way.values())
        assert under_way <= (IN_FLIGHT_MAX + UNACKNOWLEDGED_MAX) * self._inputs_per_call, "a kill repeats too many"

    def outlasted(self, process: Process) -> int:
        """Note that calls of a process may be repeated: it ends, or is isolated; returns their number."""
        gone = [place for place, caller in self._under_way.items() if caller is process]
        for place in gone:
            self.repeats_max[place] += 1
            del self._under_way[place]
        return len(gone)

    def waited(self, seconds: float) -> None:
        """Note how long a partition was assigned and not read."""
        assert seconds <= self.slow_seconds_max + HANDOVER_SECONDS_MAX, f"a partition waited for {seconds} s"

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
        self.log = MemoryLog(loop, PARTITIONS_OF)
        self.groups = {
            "ingest": Group(self.log, COMMANDS),
            "processors": ProcessorsGroup(self.log, REQUESTS, self.chance),
            "results": Group(self.log, COMMANDS, OUTCOMES),
        }
        if len(self.models) > 1:
            self.groups["others"] = ProcessorsGroup(self.log, OTHER_REQUESTS, self.chance)
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
        self._begin(group.join(member))

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
