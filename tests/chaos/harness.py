"""A run: it creates batches, injects faults in the order that the seed gives, and checks everything at the end."""

import functools
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from chaos import checker
from chaos.aim import AWAY
from chaos.backend import Backend
from chaos.checker import Verdict, Watcher
from chaos.cluster import Cluster
from chaos.faults import COMMON, KINDS
from chaos.refusals import Refusals
from chaos.rig import DISK, MEDDLE, NETWORK, WHY_NOT, rigged
from chaos.traffic import INPUTS_PER_CALL, MODELS, WINDOW_SHORT, Job, jobs
from chaos.world import World
from support.stack import Stack
from support.waiting import WAIT_SECONDS_MAX, wait_until

T = TypeVar("T")

LOOK_SECONDS = 0.5
APPENDS = 12
"""Appends to an open batch at most."""
REST_SECONDS_MIN = 1.0
"""Least time between the end of a fault and the next one."""
FEEDERS = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The parameters of a run.

    Attributes:
        seed: Seed of all random choices.
        seconds: Time during which faults come.
        faults: Names of the kinds of faults, as in `faults.KINDS`, each `NAME` or `NAME:VICTIM`.
        count: Number of faults, however long they take; None for as many as fit into `seconds`.
        every_seconds: Mean time between two faults.
        batches: Number of batches.
        lines: Lines of all batches together.
        max_in_flight: Calls of one process; its models share the server.
        latency_seconds: Latency of the backend.
        slow_seconds: Additional latency of one line in many.
        answer_bytes: Bytes added to each answer.
        timeout_seconds: Timeout of a call.
        part_bytes: Size of a part of results; None is the product's default.
        ends: Whether some batches are cancelled and some expire.
        away_seconds: How long a store or a backend is down; None leaves it to chance.
        end_seconds_max: How long the batches may take once the faults are over.
    """

    seed: int
    seconds: float = 60.0
    faults: tuple[str, ...] = COMMON
    count: int | None = None
    every_seconds: float = 5.0
    batches: int = 16
    lines: int = 8_000
    max_in_flight: int = 32
    latency_seconds: float = 0.2
    slow_seconds: float = 0.0
    answer_bytes: int = 0
    timeout_seconds: float = 8.0
    part_bytes: int | None = None
    ends: bool = True
    away_seconds: float | None = None
    end_seconds_max: float = WAIT_SECONDS_MAX

    @property
    def repeats_max(self) -> int:
        """Lines that a kill of one process may repeat: those in flight, and those with unacknowledged results."""
        return (self.max_in_flight + max(1, self.max_in_flight // 4)) * max(INPUTS_PER_CALL.values())


@dataclass(frozen=True, kw_only=True)
class Blow:
    """A fault in the schedule."""

    at: float
    kind: str
    victim: str

    def __str__(self) -> str:
        return f"{self.at:6.1f} s  {self.kind} {self.victim}".rstrip()


@dataclass
class Report:
    """The outcome of a run."""

    verdict: Verdict
    table: list[tuple[str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.table)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.table)


def schedule(plan: Plan) -> Iterator[Blow]:
    """The faults of a run and their times: a function of the plan alone."""
    chance = random.Random(plan.seed)
    chosen = [name.partition(":") for name in plan.faults]
    weights = [KINDS[kind].weight for kind, _, _ in chosen]
    at = plan.every_seconds
    number = 0
    while chosen and (at < plan.seconds if plan.count is None else number < plan.count):
        kind, _, victim = chance.choices(chosen, weights)[0]
        yield Blow(at=at, kind=kind, victim=victim or chance.choice(KINDS[kind].victims))
        at += chance.uniform(0.5, 1.5) * plan.every_seconds
        number += 1


class Harness:
    """One run over a world."""

    def __init__(self, plan: Plan, world: World, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._world = world
        self._tell = tell
        self._jobs = list(jobs(plan.seed, batches=plan.batches, lines=plan.lines, ends=plan.ends))
        self._ids: dict[int, str] = {}
        self._watcher = Watcher()
        self._refusals = Refusals()
        self._stopped = threading.Event()
        self._stall = (0.0, 0.0)
        """The longest time without a line that became final, and when it began, in seconds of the run."""
        self._errors: list[str] = []

    def run(self) -> Report:
        """Create batches, inject faults, wait for the ends, and check."""
        threads = [threading.Thread(target=self._guarded, args=(self._feed, place)) for place in range(FEEDERS)]
        threads.append(threading.Thread(target=self._guarded, args=(self._watch,)))
        for thread in threads:
            thread.start()
        try:
            began = time.monotonic()
            self._strike(began)
            self._world.heal()
            self._tell(f"{time.monotonic() - began:6.1f} s  the faults are over")
            wait_until(self._is_over, "end of all batches", seconds_max=self._plan.end_seconds_max)
        except AssertionError as error:
            self._errors.append(str(error))
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()
        return self._report()

    def _guarded(self, work: Callable[..., None], *arguments: int) -> None:
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001  a thread that ends must be heard of
            self._errors.append(f"{work.__name__}: {type(error).__name__}: {error}")

    def _strike(self, began: float) -> None:
        chance = random.Random(self._plan.seed + 1)
        rested = began
        for blow in schedule(self._plan):
            # Faults delayed by a long one must not come all at once.
            while (left := max(began + blow.at, rested) - time.monotonic()) > 0:
                time.sleep(min(left, LOOK_SECONDS))
            self._tell(f"{blow}   ({time.monotonic() - began:.1f} s)")
            KINDS[blow.kind].fault(self._world, chance, blow.victim)
            rested = time.monotonic() + REST_SECONDS_MIN

    def _feed(self, place: int) -> None:
        """Create batches at even intervals over the time of the faults, and cancel some of them."""
        began = time.monotonic()
        run = f"chaos-{self._plan.seed}"
        for job in self._jobs[place::FEEDERS]:
            at = began + 0.7 * self._plan.seconds * job.number / len(self._jobs)
            while time.monotonic() < at and not self._stopped.is_set():
                time.sleep(LOOK_SECONDS)
            if job.is_open:
                self._grow(job, run)
                continue
            file_id = self._steadily(lambda job=job: job.upload(self._world.client))
            batch_id = self._steadily(lambda job=job, file=file_id: job.create(self._world.client, run, file))
            self._ids[job.number] = batch_id
            if job.is_cancelled:
                time.sleep(LOOK_SECONDS)
                self._cancel(batch_id)

    def _grow(self, job: Job, run: str) -> None:
        """Open a batch, append its lines over some seconds, and seal it."""
        client = self._world.client
        batch_id = self._ids[job.number] = self._steadily(lambda: job.open(client, run))
        lines = math.ceil(job.lines / APPENDS)
        for sequence in range(1, math.ceil(job.lines / lines) + 1):
            time.sleep(LOOK_SECONDS)
            self._steadily(functools.partial(job.append, client, batch_id, sequence, lines=lines))
        self._steadily(lambda: job.seal(client, batch_id))

    def _cancel(self, batch_id: str) -> None:
        def cancel() -> object:
            batch = self._world.client.batches.retrieve(batch_id)
            if batch.status in {"validating", "in_progress"}:
                return self._world.client.batches.cancel(batch_id)
            return batch

        self._steadily(cancel)

    def _steadily(self, call: Callable[[], T]) -> T:
        away = (self._plan.away_seconds or 0.0) * self._plan.seconds / self._plan.every_seconds
        until = time.monotonic() + WAIT_SECONDS_MAX + self._plan.seconds + away
        while True:
            try:
                return call()
            except AWAY as error:
                self._refusals.note(error)
                if time.monotonic() > until or self._stopped.is_set():
                    raise
                time.sleep(LOOK_SECONDS)

    def _watch(self) -> None:
        began = moved = time.monotonic()
        lines = -1
        while not self._stopped.is_set():
            time.sleep(LOOK_SECONDS)
            now = time.monotonic()
            try:
                final = self._watcher.look(self._world.batches())
            except AWAY as error:
                self._refusals.note(error)
                continue
            self._stall = max(self._stall, (now - moved, moved - began))
            if final != lines or self._nothing_is_open():
                moved, lines = now, final

    def _nothing_is_open(self) -> bool:
        return all(batch["status"] in checker.OVER for batch in self._watcher.seen.values())

    def _is_over(self) -> bool:
        if self._errors:
            raise AssertionError("; ".join(self._errors))
        return len(self._ids) == len(self._jobs) and all(
            self._watcher.seen.get(batch_id, {}).get("status") in checker.OVER
            for batch_id in (*self._ids.values(), *(name for _, name in self._world.made))
        )

    def _report(self) -> Report:
        verdict = Verdict()
        for told in (*self._watcher.told, *self._refusals.told):
            verdict.say(told, wrong=1)
        by_number = {job.number: job for job in self._jobs}
        asked = [(by_number[number], batch_id) for number, batch_id in self._ids.items()]
        for job, batch_id in (*asked, *self._world.made):
            status = self._watcher.seen.get(batch_id, {}).get("status", "unknown")
            if status in checker.OVER:
                self._check(job, batch_id, verdict)
            else:
                verdict.say(f"job {job.number} ({batch_id}) hangs in {status}", lost=job.lines)
        checker.check_ledger(self._world.client, self._world.batches(), verdict)
        return self._judged(Report(verdict=verdict, failures=[*self._errors, *verdict.told]))

    def _check(self, job: Job, batch_id: str, verdict: Verdict) -> None:
        try:
            checker.check(self._world.client.with_options(max_retries=5), job, batch_id, verdict)
        except (*AWAY, KeyError, TypeError) as error:
            told = f"job {job.number} ({batch_id}) cannot be checked: {type(error).__name__}: {error}"
            verdict.say(told, lost=job.lines)

    def _judged(self, report: Report) -> Report:
        world, verdict = self._world, report.verdict
        stats = world.backend.stats()
        repeats_max = world.repeats_max
        # If clocks differ, results from before a rebalance may not be found (docs/decisions/0012).
        if stats["repeats"] > repeats_max and not world.soft["clock step"]:
            report.failures.append(f"{stats['repeats']} calls were repeated, {repeats_max} may be")
        huge = stats.get("spoilt", {}).get("huge", 0)
        if verdict.too_large > huge:
            report.failures.append(
                f"{verdict.too_large} lines had a reply that was too large, {huge} replies were"
            )
        kills = ", ".join(f"{name} {count}" for name, count in sorted(world.hard.items()))
        soft = ", ".join(f"{name} {count}" for name, count in sorted(world.soft.items()))
        strikes = sorted(world.aim.strikes.items())
        report.table = [
            ("seed", str(self._plan.seed)),
            ("batches", str(len(self._ids))),
            ("lines", f"{sum(job.lines for job in self._jobs):,}"),
            ("kills", f"{world.hard.total()} ({kills})"),
            ("other faults", f"{world.soft.total()} ({soft})"),
            *((f"met at {moment}", f"{world.aim.met[moment]} of {count} strikes") for moment, count in strikes),
            ("calls", f"{stats['calls']:,} ({sum(stats.get('spoilt', {}).values()):,} spoilt by the backend)"),
            ("calls repeated", str(stats["repeats"])),
            ("in flight at kills", f"{world.in_flight} at the backend, {repeats_max} at most by the limits"),
            ("refused by the api", str(self._refusals)),
            ("lost", str(verdict.lost)),
            ("double", str(verdict.double)),
            ("wrong bill", str(verdict.wrong_bill)),
            ("otherwise wrong", str(verdict.wrong)),
            *(("found", found) for found in world.found),
            *([("time to recover", _spread(world.recoveries))] if world.recoveries else []),
            ("longest stall", "{:.1f} s, from {:.1f} s on".format(*self._stall)),
        ]  # fmt: skip
        return report


def staged(plan: Plan, tell: Callable[[str], None]) -> Plan:
    """The plan without the faults that this machine does not support; says which and why."""
    needs = set(map(_need, plan.faults))
    why_not = {need: why() for need, why in WHY_NOT.items() if need in needs}
    if NETWORK in needs and not why_not[NETWORK]:
        why_not |= dict.fromkeys({DISK, MEDDLE} & needs, "a cluster has no disks and clocks of its own")
    for need, why in why_not.items():
        if why:
            left_out = ", ".join(name for name in plan.faults if _need(name) == need)
            tell(f"left out: {left_out}, since {why}")
    return replace(plan, faults=tuple(name for name in plan.faults if not why_not.get(_need(name))))


def _spread(recoveries: list[tuple[str, float]]) -> str:
    times = sorted((seconds, fault) for fault, seconds in recoveries)
    (middle, _), (most, fault) = times[len(times) // 2], times[-1]
    return f"{middle:.1f} s in the middle, {most:.1f} s at most ({fault}), of {len(times)}"


def _need(fault: str) -> str:
    return KINDS[fault.partition(":")[0]].needs


def run(
    plan: Plan,
    data: Path,
    *,
    keep: bool = False,
    tell: Callable[[str], None] = print,
) -> Report:
    """Start an installation in a folder, run the plan on it, and stop it.

    Args:
        plan: What to do.
        data: An empty folder, or one that does not exist.
        keep: Whether to keep a copy of the run's temporary disks in `DATA.rig`.
        tell: Called with a line for each event.
    """
    tell(f"seed {plan.seed}")
    plan = staged(plan, tell)
    with Backend(plan.seed) as backend, rigged(data, map(_need, plan.faults), keep=keep) as rig:
        backend.set(latency=plan.latency_seconds)
        if plan.slow_seconds:
            backend.set(slow=plan.slow_seconds)
        if plan.answer_bytes:
            backend.set(padding=plan.answer_bytes)
        models = backend.models(*MODELS, max_in_flight=plan.max_in_flight, timeout_seconds=plan.timeout_seconds)
        environ = {"TIDEMILL_WINDOWS": f'{{"24h": 0.5, "{WINDOW_SHORT}": 0.5}}', "TIDEMILL_GRACE_SECONDS": "2"}
        if plan.part_bytes is not None:
            environ["TIDEMILL_PART_BYTES"] = str(plan.part_bytes)
        kind = Cluster if NETWORK in map(_need, plan.faults) else Stack
        with kind(data, models, {**environ, **rig.environ}) as stack:
            world = World(
                stack,
                backend,
                rig,
                per_process=plan.repeats_max,
                away_seconds=plan.away_seconds,
            )
            try:
                return Harness(plan, world, tell).run()
            finally:
                world.heal()
