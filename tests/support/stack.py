"""A whole installation on this machine, started by `tidemill up` as a user would."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import orjson
import psutil
from support.brokers import copy_formatted
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.configuration.security import Cluster, Security, client_options
from tidemill.kafka.freeze_guard import FROZEN
from tidemill.local import data_folder
from tidemill.local.embedded import kraft
from tidemill.runtime import run_file
from tidemill.schemas.log.acls import ADMIN

KEPT = ("TIDEMILL_CACHE", "TIDEMILL_MAVEN")
"""Variables of the machine that name package sources; tests keep them."""
KEY = "sk-test-0123456789-of-the-tests"
PROBE_SECONDS_MAX = 10.0
LOG_BYTES_SHOWN = 8_000


class Stack:
    """One running installation; a context manager, and it can be stopped and started again.

    Attributes:
        data: Its folder, which outlives a stop.
        models: The table `models` of its configuration.
        environ: Further environment variables.
        cwd: The folder in which it starts, with its settings file; by default this process's, without one.
        prefix: A program that runs its command line.
    """

    def __init__(
        self, data: Path, models: dict[str, dict[str, Any]], environ: dict[str, str] | None = None
    ) -> None:
        self.data = data
        self.models = models
        self.environ = environ or {}
        self.cwd: Path | None = None
        self.prefix: tuple[str, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def api(self) -> str:
        """Where the API listens, `/v1` included."""
        return str(self._running["api"])

    @property
    def kafka(self) -> str:
        """Where the broker listens, `host:port`."""
        return str(self._running["kafka"])

    def cluster(self, role: str = ADMIN) -> Cluster:
        """The broker, with the credentials of a role."""
        found = run_file.cluster(self.data, role, Security())
        assert found is not None
        return found

    def clients(self, role: str = ADMIN) -> dict[str, Any]:
        """The broker and credentials as arguments of aiokafka's clients."""
        return client_options(self.cluster(role))

    def way_in(self, role: str) -> dict[str, str]:
        """The broker and credentials as environment variables."""
        return {"TIDEMILL_KAFKA": self.kafka, **self.cluster(role).security.environ}

    @property
    def supervisor(self) -> int:
        """Pid of `tidemill up` itself."""
        assert self._process is not None
        return self._process.pid

    @property
    def environ_of_all(self) -> dict[str, str]:
        """Environment of each of its processes, without the addresses."""
        return self._environ()

    @property
    def log(self) -> Path:
        """File with the stdout and stderr of the installation."""
        return self.data / "up.log"

    def pids(self, stage: str) -> list[int]:
        """Pids of a stage at this moment; a stage that was killed comes back with new ones."""
        return list(self._running["processes"].get(stage, []))

    def ends(self) -> list[str]:
        """What its log says of processes that ended, without those that the machine had frozen for too long."""
        said = [line for line in self.log.read_text().splitlines() if "; restarting it in " in line]
        return [line for line in said if f" ended with exit code {FROZEN}" not in line]

    def start_extra(self, stage: str, place: str) -> subprocess.Popen[bytes]:
        """Start one more process of a stage on the same data folder; the caller ends it.

        Args:
            stage: The stage.
            place: The name of its log, `extra-1` and so on.
        """
        environ = {**self._environ(), "TIDEMILL_DATA": str(self.data), **self.way_in(stage), "TIDEMILL_PORT": "0"}
        with (self.data / "logs" / f"{place}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tidemill", stage], env=environ, stdout=log, stderr=subprocess.STDOUT
            )

    def is_ready(self, stage: str) -> bool:
        """Whether a stage reports that it is ready."""
        with suppress(OSError, ValueError, KeyError):
            address = self._running["health"][stage]
            with urllib.request.urlopen(f"{address}/readyz", timeout=PROBE_SECONDS_MAX) as answer:
                return bool(answer.status == HTTPStatus.OK)
        return False

    def kill(self, stage: str) -> list[int]:
        """Kill the processes of a stage, like a power cut, and return their pids.

        If the stage is restarting, wait for it.
        """
        pids = wait_until(lambda: all(map(runs, found := self.pids(stage))) and found, f"a process of {stage}")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: not any(runs(pid) for pid in pids),
            what=f"end of {stage}",
        )
        return pids

    def kill_fork_server(self) -> set[int]:
        """Kill the process that forks the stages, and return the pids of the stages, which have ended with it."""
        pid = wait_until(lambda: all(map(runs, found := self.pids("api"))) and found, "a process of api")[0]
        server = psutil.Process(pid).parent()
        assert server is not None
        stages = {child.pid for child in server.children()}
        server.kill()
        wait_until(lambda: not any(map(runs, stages)), what="end of the stages")
        return stages

    def crash(self, pids: Iterable[int] = ()) -> None:
        """Kill the supervisor and the processes of `pids`; returns once all processes have ended."""
        assert self._process is not None
        process, self._process = self._process, None
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        doomed = {process.pid, *pids, *(child.pid for child in children)}
        for pid in (process.pid, *pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(WAIT_SECONDS_MAX)
        wait_until(
            lambda: not any(runs(pid) for pid in doomed),
            what="end of the supervisor's processes",
        )

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self.data.mkdir(parents=True, exist_ok=True)
        (self.data / "run.json").unlink(missing_ok=True)
        self._no_settings.write_text("")
        if "TIDEMILL_KAFKA" not in self.environ:
            if not (self.data / "kafka").exists():
                with data_folder.locked(self.data):
                    data_folder.keep_encryption_keys(self.data)
                    data_folder.kept_signing_key(self.data)
                    data_folder.stamp(self.data)
                    copy_formatted(self.data)
            # Its broker uses these ports.
            kraft.keep_ports(self.data / "kafka" / "ports")
        with self.log.open("wb") as log:
            command = [sys.executable, "-P", "-m", "tidemill", "up", "--port", "0", "--data", str(self.data)]
            self._process = subprocess.Popen(
                [*self.prefix, *command], stdout=log, stderr=subprocess.STDOUT, env=self._environ(), cwd=self.cwd
            )
        wait_until(self._is_ready, what=f"ready line in {self.log}")

    def stop(self) -> int:
        """Stop it as an operator would, and return its exit code; a second call does nothing."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            return process.wait(WAIT_SECONDS_MAX)
        finally:
            # No process may outlive its test.
            for child in [process, *children]:
                if runs(child.pid):
                    child.kill()
            process.wait(WAIT_SECONDS_MAX)

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_bytes()[-LOG_BYTES_SHOWN:].decode("utf-8", "replace")

    @property
    def _running(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads((self.data / "run.json").read_bytes())
        return found

    @property
    def _no_settings(self) -> Path:
        """An empty settings file."""
        return self.data / "tidemill.toml"

    def _environ(self) -> dict[str, str]:
        own = {
            name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_") or name in KEPT
        }
        models = {"TIDEMILL_MODELS": json.dumps(self.models)} if self.models else {}
        config = {} if self.cwd else {"TIDEMILL_CONFIG": str(self._no_settings)}
        return {**own, "TIDEMILL_API_KEY": KEY, **config, **models, **self.environ}

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"`tidemill up` ended with {self._process.returncode}:\n{self.tail()}")
        return b"Tidemill is ready at " in self.log.read_bytes() and (self.data / "run.json").exists()


def runs(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
