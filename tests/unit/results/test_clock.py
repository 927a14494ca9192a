"""Steps of the wall clock do not change how long something lasts."""

import asyncio
from decimal import Decimal

import pytest
from support.results_limits import file_rules, limits
from support.simulated import Fuse, SimulatedLog, SimulatedStore, SimulatedTables, surely

from tidemill.configuration.catalog import Entry, Fold
from tidemill.results import resources
from tidemill.results.batches import RETRY_SECONDS
from tidemill.results.partition import Partition
from tidemill.results.state.stalls import held
from tidemill.schemas.jsonl import line
from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.log.messages import Accepted, BatchCreated, CancelRequested, Compacted, InputRef, Tick
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.schemas.resources.bill import Tariff
from tidemill.storage.buckets import Buckets

NOW = 1_790_000_000
AGE_SECONDS = 3.0
GRACE_SECONDS = 5.0
STEP_SECONDS = 600.0
WINDOW_SECONDS = 86_400
BATCH_ID = f"batch_{0:032x}"
INPUT = b"".join(
    b'{"custom_id":"%b","method":"POST","url":"/v1/embeddings","body":{"model":"m"}}\n' % name
    for name in (b"a", b"b")
)


class Clocks:
    """A wall clock that is stepped, and the monotonic clock."""

    def __init__(self) -> None:
        self.wall = float(NOW)
        self.monotonic = 100.0

    def pass_(self, seconds: float) -> None:
        """Time goes by."""
        self.wall += seconds
        self.monotonic += seconds


class Owner:
    """A partition with one batch of two lines."""

    def __init__(self) -> None:
        self.clocks = Clocks()
        self.acked: list[str] = []
        fuse = Fuse()
        fuse.left = -1
        self.log, self.store = SimulatedLog(fuse), SimulatedStore(fuse)
        self.store.objects["files/in"] = INPUT
        tariff = Tariff(input_per_million=Decimal(1), output_per_million=Decimal(1))
        self._tables = SimulatedTables(fuse)
        self.fold = Fold()
        self.set("server/s", {"url": "http://s/v1"})
        self.set("model/m", {"servers": ["s"]})
        self._tariff = tariff
        self.take_over()

    def take_over(self) -> None:
        """The partition has a new process."""
        self.partition = Partition(
            0,
            tables=self._tables,
            resources=resources.Resources(
                sender=self.log,
                history=self.log.outcomes,
                store=self.store,
                clock=lambda: self.clocks.wall,
                monotonic=lambda: self.clocks.monotonic,
                limits=limits(
                    files=file_rules(tariff_of=lambda *_: self._tariff),
                    part_age_seconds=AGE_SECONDS,
                    grace_seconds=GRACE_SECONDS,
                    why_uncalled=lambda model: held(self.fold.contents(), model),
                    revision=lambda: self.fold.revision,
                ),
                compactions=asyncio.Semaphore(1),
                buckets=Buckets({}),
                wake=lambda: None,
            ),
            owner=resources.Owner(writer="w", generation=1, confirm=surely),
        )

    def set(self, key: str, settings: dict[str, object], *, removed: bool = False) -> None:
        """Change the catalog."""
        entry = Entry(settings=settings, removed=removed, author="k", at=NOW)
        self.fold.apply(key, entry.model_dump_json().encode(), self.fold.revision + 1)

    async def shown(self) -> list[tuple[str, int]]:
        """The reasons that the batch shows after a tick, if one is due at once."""
        self.partition.batches.check_models()
        await self.tick()
        active = self.partition.active_batches.get(BATCH_ID)
        return [(wait.reason.value, wait.lines) for wait in active.waiting]

    async def begin(self) -> None:
        """The batch is at work."""
        batch = Batch(
            id=BATCH_ID, endpoint="/v1/embeddings", input_file_id="f", completion_window="24h",
            status=Status.VALIDATING, created_at=NOW, expires_at=NOW + WINDOW_SECONDS,
        )  # fmt: skip
        await self.partition.load()
        created = BatchCreated(project="p", batch=batch, input=InputRef(key="files/in", bytes=len(INPUT)))
        await self.partition.command(created, lambda: None)
        await self.partition.fact(Accepted(batch_id=BATCH_ID, total=2, model="m", at=NOW), lambda: None)

    async def land(self) -> None:
        """The result of the first line comes."""
        text = line.answered(BATCH_ID, 0, b'"a"', status=200, request_id="r", body=b"{}")
        mark = LineMark(index=0, size=len(text), failed=False, usage=(0, 0, 0, 0))
        await self.partition.lines(BATCH_ID, [mark], text, lambda: self.acked.append("line"))

    async def tick(self) -> None:
        """Send a tick if something is due by our clock, as the record handler does."""
        if self.partition.due_at is not None and self.partition.due_at <= self.clocks.wall:
            tick = Tick(at=self.clocks.wall, writer=self.partition.owner.writer)
            await self.partition.fact(tick, lambda: None)

    async def ended(self) -> list[Compacted]:
        """What the compactions have said, once none is under way."""
        await asyncio.gather(*self.partition._background._tasks)
        facts = (codec.decode_fact(value) for _, _, value in self.log.events)
        return [fact for fact in facts if isinstance(fact, Compacted)]


@pytest.fixture
async def owner():
    """With the batch begun."""
    owner = Owner()
    await owner.begin()
    yield owner
    owner.partition.abandon()


async def test_lines_do_not_wait_for_a_clock_that_was_set_back(owner):
    """They are in a part and acknowledged after their time by the monotonic clock."""
    await owner.land()
    owner.clocks.wall -= STEP_SECONDS
    owner.partition.batches.check_clock()
    owner.clocks.pass_(AGE_SECONDS + 1)
    await owner.tick()
    assert owner.acked == ["line"]


async def test_a_clock_set_forward_flushes_nothing_early(owner):
    """The tick of a clock that is set back at once does not make the owner spin."""
    await owner.land()
    ahead = Tick(at=owner.clocks.wall + STEP_SECONDS, writer=owner.partition.owner.writer)
    await owner.partition.fact(ahead, lambda: None)
    assert owner.acked == []


@pytest.mark.parametrize("ahead", [STEP_SECONDS, 0.0])
async def test_a_grace_period_has_its_length(owner, ahead):
    """Even if the api's clock is ahead, or ours is set back."""
    cancel = CancelRequested(batch_id=BATCH_ID, at=int(NOW + ahead))
    await owner.partition.command(cancel, lambda: None)
    owner.clocks.wall -= STEP_SECONDS - ahead
    owner.partition.batches.check_clock()
    await owner.tick()
    assert await owner.ended() == []
    owner.clocks.pass_(GRACE_SECONDS + 1)
    await owner.tick()
    assert len(await owner.ended()) == 1


@pytest.mark.parametrize("lost", [False, True])
async def test_a_tick_of_a_former_owner_ends_no_batch_with_published_lines(owner, lost):
    """They may lie behind it; lines that are missing at a tick of our own are lost."""
    owner.clocks.pass_(1)
    await owner.land()
    owner.partition.abandon()
    owner.take_over()
    await owner.partition.load()
    await owner.partition.command(CancelRequested(batch_id=BATCH_ID, at=int(owner.clocks.wall)), lambda: None)
    owner.clocks.pass_(GRACE_SECONDS + 1)
    for before in ("", "before"):
        await owner.partition.fact(Tick(at=owner.clocks.wall + STEP_SECONDS, writer=before), lambda: None)
        assert await owner.ended() == []
    if not lost:
        await owner.land()
    await owner.tick()
    (fact,) = await owner.ended()
    assert (fact.receipt.output is None) == lost
    assert fact.receipt.lines == 2


async def test_a_tick_of_a_former_owner_expires_no_batch(owner):
    """Its clock may have been ahead: a deadline counts by ours."""
    await owner.land()
    owner.clocks.pass_(WINDOW_SECONDS - STEP_SECONDS / 2)
    await owner.partition.fact(Tick(at=owner.clocks.wall + STEP_SECONDS, writer="before"), lambda: None)
    owner.clocks.pass_(GRACE_SECONDS + 1)
    await owner.tick()
    assert await owner.ended() == []
    owner.clocks.pass_(STEP_SECONDS)
    await owner.tick()
    owner.clocks.pass_(GRACE_SECONDS + 1)
    await owner.tick()
    assert len(await owner.ended()) == 1


async def test_progress_is_published_while_the_clock_is_behind(owner):
    """A batch is published again after half a second of the monotonic clock."""
    owner.clocks.wall -= STEP_SECONDS
    owner.clocks.pass_(1)
    await owner.land()
    assert owner.log.published[-1].batch.request_counts.completed == 1


async def test_a_batch_does_not_end_before_it_began(owner):
    """Its times come from the clocks of several processes, and one may be behind."""
    owner.clocks.wall -= STEP_SECONDS
    await owner.partition.command(CancelRequested(batch_id=BATCH_ID, at=int(owner.clocks.wall)), lambda: None)
    owner.clocks.pass_(GRACE_SECONDS + 1)
    owner.partition.batches.check_clock()
    await owner.tick()
    for fact in await owner.ended():
        await owner.partition.fact(fact, lambda: None)
    batch = owner.log.published[-1].batch
    assert batch.status is Status.CANCELLED
    assert batch.created_at <= batch.in_progress_at <= batch.cancelling_at <= batch.cancelled_at


async def test_a_batch_shows_that_its_model_is_held(owner):
    """At once, and no longer than it is; what the settings say counts more than what a process reports."""
    assert await owner.shown() == []
    owner.set("model/m", {"servers": ["s"], "paused": True})
    assert await owner.shown() == [("paused", 2)]
    owner.set("server/t", {"url": "http://t/v1"})
    assert await owner.shown() == [("paused", 2)]
    owner.set("model/m", {"servers": ["s"]})
    assert await owner.shown() == []
    owner.set("model/m", {"servers": ["s"]}, removed=True)
    assert await owner.shown() == [("removed", 2)]
    owner.set("model/m", {"servers": ["unknown"]})
    assert await owner.shown() == [("no_processor", 2)]


async def test_the_reason_of_a_failed_timer_goes_once_it_works(owner, monkeypatch):
    """It was a fault of one moment, and says nothing of the next."""
    await owner.land()
    broken = [True, False]

    async def flush(*_: object, **__: object) -> bool:
        if broken.pop(0):
            raise ZeroDivisionError
        return True

    monkeypatch.setattr(owner.partition.batches.parts, "flush", flush)
    owner.clocks.pass_(AGE_SECONDS + 1)
    assert await owner.shown() == [("files", 0)]
    owner.clocks.pass_(RETRY_SECONDS + 1)
    assert await owner.shown() == []
