"""What a fault can reach: the installation, its backend, and extra processes of its stages."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from chaos.aim import Aim
from chaos.backend import Backend
from chaos.rig import Rig
from openai import OpenAI
from support.stack import KEY, Stack, runs
from support.waiting import wait_until

STAGES = ("api", "ingest", "processors", "results")
PROCESSES = (*STAGES, "kafka", "supervisor")
BACK_SECONDS_MAX = 90.0
EXTRAS_MAX = 3
AWAY_SECONDS = (2.0, 8.0)
CLIENT_SECONDS_MAX = 20.0


class World:
    """The installation under test.

    Attributes:
        rig: What the machine lends: disks that can be full, clocks that step.
        hard: How often each process was ended without a word.
        in_flight: Calls the backend had at the times when processors were ended or frozen, in all.
        in_flight_max: The most that Tidemill itself may have counted as in flight at these times: calls, and
            results that the log did not have yet.
        aim: Finds the moment of faults that wait for one.
    """

    def __init__(
        self, stack: Stack, backend: Backend, rig: Rig, *, per_process: int, away_seconds: float | None = None
    ) -> None:
        self.stack = stack
        self.backend = backend
        self.rig = rig
        self.hard: Counter[str] = Counter()
        self.soft: Counter[str] = Counter()
        self.in_flight = 0
        self.in_flight_max = 0
        self._per_process = per_process
        self._away_seconds = away_seconds
        self._extras: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.aim = Aim(self.batches)

    @property
    def client(self) -> OpenAI:
        """A client of the API where it listens now."""
        return OpenAI(base_url=self.stack.api, api_key=KEY, max_retries=0, timeout=CLIENT_SECONDS_MAX)

    def pids(self, name: str) -> list[int]:
        """The processes of a stage that live, the extra ones included."""
        if name == "supervisor":
            return [self.stack.supervisor]
        extra = [process.pid for stage, process in self._extras if stage == name and process.poll() is None]
        with suppress(OSError, ValueError):
            return [*filter(runs, self.stack.pids(name)), *extra]
        return extra

    def away(self, chance: random.Random) -> float:
        """How many seconds a store or a backend is away."""
        return self._away_seconds or chance.uniform(*AWAY_SECONDS)

    def wait_for(self, name: str) -> list[int]:
        """The processes of a stage, once there is one."""
        return wait_until(lambda: self.pids(name), f"a process of {name}", seconds_max=BACK_SECONDS_MAX)

    def end(self, pids: list[int], name: str, how: signal.Signals) -> None:
        """Send a signal that ends processes, and write down what that may cost."""
        if how is signal.SIGKILL:
            self.hard[name] += 1
            if name == "processors":
                self.note_in_flight(len(pids))
        else:
            self.soft[name] += 1
        send(pids, how)

    def note_in_flight(self, processes: int) -> None:
        """So many processes of processors lose what they have in flight now."""
        self.in_flight += self.backend.stats()["in_flight"]
        self.in_flight_max += processes * self._per_process

    def crash(self) -> None:
        """End everything at once, as a power cut does, and start it again."""
        pids = [pid for name in (*STAGES, "kafka") for pid in self.pids(name)]
        self.note_in_flight(len(self.pids("processors")))
        self._extras.clear()
        self.stack.crash(pids)
        self.stack.start()

    def start_extra(self, stage: str) -> None:
        """Start one more process of a stage on the same data folder; beyond `EXTRAS_MAX` the oldest one stops."""
        self._extras = [(name, process) for name, process in self._extras if process.poll() is None]
        while len(self._extras) >= EXTRAS_MAX:
            self.stop_extra()
        environ = {
            **self.stack.environ_of_all,
            "TIDEMILL_DATA": str(self.stack.data),
            **self.stack.way_in(stage),
            "TIDEMILL_PORT": "0",
        }
        log = (self.stack.data / "logs" / f"extra-{stage}.log").open("ab")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tidemill", stage], env=environ, stdout=log, stderr=subprocess.STDOUT
            )
        self._extras.append((stage, process))

    def stop_extra(self) -> None:
        """Ask the oldest extra process to end, and wait for it."""
        if self._extras:
            _, process = self._extras.pop(0)
            # One that was frozen in the meantime would not hear.
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
        """Undo what lasts."""
        self.backend.set(down="false")
        self.rig.heal()
        mend_store(self.stack.data)
        self.stop_extras()

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


def send(pids: list[int], how: signal.Signals) -> None:
    """Send a signal to processes of which some may have gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, how)


def gone(pids: list[int]) -> bool:
    """Whether none of them runs."""
    return not any(map(runs, pids))


def break_store(data: Path) -> None:
    """From now on every call of the store fails: its folder is a link to itself."""
    (data / "store").rename(data / "store.away")
    (data / "store").symlink_to(data / "store")


def mend_store(data: Path) -> None:
    """The store is back as it was."""
    if (data / "store.away").exists():
        (data / "store").unlink()
        (data / "store.away").rename(data / "store")


def sleep(seconds: float) -> None:
    """A fault lasts: its length is its content."""
    time.sleep(seconds)
