"""The targets of faults: the installation, its backend, and extra processes of its stages."""

import functools
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from chaos.aim import AWAY, Aim, done
from chaos.backend import Backend
from chaos.checker import OVER
from chaos.cluster import EXTRAS, STAGES, STORE, Cluster
from chaos.rig import Rig
from chaos.traffic import Job
from openai import OpenAI
from support.stack import KEY, Stack, runs
from support.waiting import wait_until

T = TypeVar("T")
Step = tuple[str, str, int]
"""A batch, its status, and how many of its lines are final."""

PROCESSES = (*STAGES, "kafka", "supervisor")
LOOK_SECONDS = 0.1
AWAY_SECONDS = (2.0, 8.0)
CLIENT_SECONDS_MAX = 60.0


class World:
    """The installation under test.

    Attributes:
        rig: Means of the machine: disks that can be filled, clocks that can be stepped.
        hard: How often each process was killed without warning.
        in_flight: Sum of the backend's calls in flight whenever processors were ended or frozen.
        repeats_max: Bound on the calls in flight and unacknowledged results at these times.
        aim: Waits for the moments of aimed faults.
        recoveries: Seconds without progress of any batch after each network fault.
        made: Batches that faults created, and their jobs.
        found: Measurements of faults, in words.
    """

    def __init__(
        self,
        stack: Stack | Cluster,
        backend: Backend,
        rig: Rig,
        *,
        per_process: int,
        away_seconds: float | None = None,
    ) -> None:
        self.stack = stack
        self.backend = backend
        self.rig = rig
        self.hard: Counter[str] = Counter()
        self.soft: Counter[str] = Counter()
        self.in_flight = 0
        self.repeats_max = 0
        self._per_process = per_process
        self._away_seconds = away_seconds
        self._extras: list[tuple[str, str, subprocess.Popen[bytes]]] = []
        """Stage, place and process, the oldest first."""
        self.aim = Aim(self.batches)
        self.recoveries: list[tuple[str, float]] = []
        self.made: list[tuple[Job, str]] = []
        self.found: list[str] = []

    @property
    def cluster(self) -> Cluster:
        """The installation, which must be a cluster."""
        assert isinstance(self.stack, Cluster)
        return self.stack

    def places(self, stage: str) -> list[str]:
        """The places of a cluster's live processes of a stage."""
        extra = [place for name, place, process in self._extras if name == stage and process.poll() is None]
        return [stage, *extra]

    @property
    def client(self) -> OpenAI:
        """A client of the API at its present address."""
        return _client(self.stack.api)

    def pids(self, name: str) -> list[int]:
        """The live processes of a stage, including extra ones."""
        if name == "supervisor":
            return [self.stack.supervisor]
        extra = [process.pid for stage, _, process in self._extras if stage == name and process.poll() is None]
        with suppress(OSError, ValueError):
            return [*filter(runs, self.stack.pids(name)), *extra]
        return extra

    def away(self, chance: random.Random) -> float:
        """How many seconds a store or a backend is down."""
        return self._away_seconds or chance.uniform(*AWAY_SECONDS)

    def wait_for(self, name: str) -> list[int]:
        """The processes of a stage, once there is one."""
        return wait_until(lambda: self.pids(name), f"a process of {name}")

    def end(self, pids: list[int], name: str, how: signal.Signals) -> None:
        """Send processes a signal that ends them, and note how many calls may be repeated."""
        if how is signal.SIGKILL:
            self.hard[name] += 1
            if name == "processors":
                self.note_in_flight(len(pids))
        else:
            self.soft[name] += 1
        send(pids, how)

    def note_in_flight(self, processes: int) -> None:
        """Note that this many processes of processors lose their calls in flight."""
        self.in_flight += self.backend.stats()["in_flight"]
        self.repeats_max += processes * self._per_process

    def crash(self) -> None:
        """Kill everything at once, as a power cut does, and start it again."""
        pids = [pid for name in (*STAGES, "kafka") for pid in self.pids(name)]
        self.note_in_flight(len(self.pids("processors")))
        self._extras.clear()
        self.stack.crash(pids)
        self.stack.start()

    def start_extra(self, stage: str) -> str:
        """Start one more process of a stage and return its place; if no place is free, stop the oldest process."""
        self._extras = [extra for extra in self._extras if extra[2].poll() is None]
        while len(self._extras) >= len(EXTRAS):
            self.stop_extra()
        place = next(place for place in EXTRAS if all(place != taken for _, taken, _ in self._extras))
        self._extras.append((stage, place, self.stack.start_extra(stage, place)))
        return place

    def stop_extra(self) -> None:
        """Ask the oldest extra process to end, and wait for it."""
        if self._extras:
            _, _, process = self._extras.pop(0)
            # A process that is frozen would not receive the signal.
            process.send_signal(signal.SIGCONT)
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()

    def stop_extras(self) -> None:
        """End all extra processes, one after the other."""
        while self._extras:
            self.stop_extra()

    def heal(self) -> None:
        """Undo all lasting faults."""
        self.backend.set(down="false")
        self.rig.heal()
        self.mend_store()
        self.stop_extras()

    def break_store(self) -> None:
        """Let every call of the store fail: its folder becomes a link to itself, or its connections break."""
        if isinstance(self.stack, Cluster):
            self.stack.network.set(server=STORE, closed=True)
            return
        store = self.stack.data / "store"
        store.rename(store.with_suffix(".away"))
        store.symlink_to(store)

    def mend_store(self) -> None:
        """Restore the store and the network."""
        if isinstance(self.stack, Cluster):
            self.stack.network.heal()
            return
        store = self.stack.data / "store"
        if store.with_suffix(".away").exists():
            store.unlink()
            store.with_suffix(".away").rename(store)

    def recover(self, fault: str) -> None:
        """Wait until some batch makes progress after a fault, or none is at work.

        Raises:
            AssertionError: No batch makes progress for `WAIT_SECONDS_MAX`.
        """
        began = time.monotonic()
        first: list[list[Step]] = []

        def goes_on() -> bool:
            sleep(LOOK_SECONDS)
            try:
                batches = self.batches()
            except AWAY:
                return False
            now = [(batch["id"], batch["status"], done(batch)) for batch in batches]
            first[:] = first or [now]
            return now != first[0] or not _at_work(first[0])

        wait_until(goes_on, f"a step of some batch after {fault}")
        if _at_work(first[0]):
            self.recoveries.append((fault, time.monotonic() - began))

    def batch(self, batch_id: str) -> dict[str, Any]:
        """A batch as the API shows it."""
        return self.client.get(f"/batches/{batch_id}", cast_to=dict)

    def steadily(self, call: Callable[[], T]) -> T:
        """Repeat a request until the api answers, as a client would."""
        found: list[T] = []

        def answers() -> bool:
            sleep(LOOK_SECONDS)
            with suppress(*AWAY):
                found.append(call())
            return bool(found)

        wait_until(answers, "an answer of the api")
        return found[0]

    def batches(self) -> list[dict[str, Any]]:
        """All batches as the API lists them."""
        found: list[dict[str, Any]] = []
        after: dict[str, Any] = {}
        while True:
            page = self.client.get("/batches", cast_to=dict, options={"params": {"limit": 100, **after}})
            found += page["data"]
            if not page["has_more"]:
                return found
            after = {"after": page["last_id"]}


@functools.cache
def _client(api: str) -> OpenAI:
    """A cached client of an address: a new one loads all certificates, which takes longer than most calls."""
    return OpenAI(base_url=api, api_key=KEY, max_retries=0, timeout=CLIENT_SECONDS_MAX)


def send(pids: list[int], how: signal.Signals) -> None:
    """Send a signal to processes; some may have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, how)


def gone(pids: list[int]) -> bool:
    """Whether none of these processes runs."""
    return not any(map(runs, pids))


def _at_work(steps: list[Step]) -> bool:
    return any(status not in OVER for _, status, _ in steps)


def sleep(seconds: float) -> None:
    """Let a fault last for some seconds."""
    time.sleep(seconds)
