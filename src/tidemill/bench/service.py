"""Starts the service that the bench measures, controls the mock backend, and samples CPU and memory."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import aiohttp
import psutil

from tidemill.bench.cases import CALM, IN_FLIGHT_MAX, INPUTS_PER_CALL, JOINED, MODELS, Case
from tidemill.configuration.settings import ENV_PREFIX
from tidemill.schemas.resources import access

START_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 30.0
POLL_SECONDS = 0.1
KEY = access.new_secret()
SAMPLE_SECONDS = 0.1
ERROR_CHARS_MAX = 1000
KEPT = ("TIDEMILL_CACHE", "TIDEMILL_MAVEN")
"""Variables that the service gets; others belong to another installation."""


class Mock:
    """Client of the mock backend: sets its behaviour and reads its counters."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")

    async def behave(self, backend: dict[str, str]) -> None:
        """Set the behaviour, with defaults for everything else, and reset the counters."""
        await self.change({**CALM, **backend})
        await self._post("/reset", {})

    async def change(self, backend: dict[str, str]) -> None:
        """Change some parameters of the behaviour."""
        await self._post("/set", backend)

    async def stats(self) -> dict[str, Any]:
        """The counters: calls, successful ones, repeats, in flight."""
        with _named(self.url):
            async with aiohttp.ClientSession() as session, session.get(self.url + "/stats") as answer:
                answer.raise_for_status()
                found: dict[str, Any] = json.loads(await answer.read())
                return found

    async def _post(self, path: str, params: dict[str, str]) -> None:
        with _named(self.url):
            async with aiohttp.ClientSession() as session, session.post(self.url + path, params=params) as answer:
                answer.raise_for_status()


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Raise each error of a call of the mock backend as an `OSError` that names it."""
    try:
        yield
    except (OSError, ValueError, aiohttp.ClientError) as error:
        raise OSError(f"the mock backend at {url}: {str(error) or type(error).__name__}") from error


class Service:
    """`tidemill up` in its own data folder; an asynchronous context manager."""

    def __init__(self, folder: Path, mock: Mock) -> None:
        self._folder = folder
        self._mock = mock.url
        self._process: subprocess.Popen[bytes] | None = None
        self.base_url = ""
        self.processes: dict[str, list[int]] = {}

    def environ(self) -> dict[str, str]:
        """The environment of the service: the models, and no settings of another installation."""
        model = {"backends": [{"url": f"{self._mock}/v1"}], "max_in_flight": IN_FLIGHT_MAX}
        joined = {**model, "upstream_model": MODELS[0], "inputs_per_call": INPUTS_PER_CALL}
        models = {**dict.fromkeys(MODELS, model), JOINED: joined}
        others = {name for name in os.environ if name.startswith(ENV_PREFIX) and name not in KEPT}
        own = {name: value for name, value in os.environ.items() if name not in others}
        return {**own, "TIDEMILL_MODELS": json.dumps(models), "TIDEMILL_API_KEY": KEY}

    def command(self) -> list[str]:
        """The command line of the service, with a settings file that is empty."""
        config = self._folder.with_name("tidemill.toml")
        config.write_text("", "utf-8")
        options = ["--port", "0", "--data", str(self._folder), "--config", str(config)]
        return [sys.executable, "-P", "-m", "tidemill", "up", *options]

    async def __aenter__(self) -> Self:
        command, environ = self.command(), self.environ()
        process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)  # noqa: ASYNC220, S603
        self._process = process
        try:
            state = json.loads(await self._started(process))
        except BaseException:
            await self._stop(process)
            raise
        self.base_url = state["api"]
        self.processes = state["processes"]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            await self._stop(self._process)

    async def _started(self, process: "subprocess.Popen[bytes]") -> str:
        """Return the content of `run.json`."""
        run = self._folder / "run.json"
        end = time.monotonic() + START_SECONDS_MAX
        while not run.exists():
            if process.poll() is not None:
                raise OSError(f"`tidemill up` did not start: it ended with exit code {process.returncode}")
            if time.monotonic() > end:
                raise OSError(f"the service was not ready within {START_SECONDS_MAX:.0f} s")
            await asyncio.sleep(POLL_SECONDS)
        return run.read_text("utf-8")

    @staticmethod
    async def _stop(process: "subprocess.Popen[bytes]") -> None:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            # Its children end with it.
            process.kill()
            process.wait()


class BareError(Exception):
    """The bare client failed; the text is the end of its output."""


async def run_bare(command: Sequence[str], case: Case, mock: Mock, inputs: Sequence[Path]) -> dict[str, float]:
    """Run the bare client over a case; returns its `calls`, `seconds` and `cpu_seconds`.

    Raises:
        BareError: It failed.
    """
    changes = ",".join(f"{seconds}:{most}" for seconds, most in case.changes) or "-"
    process = await asyncio.create_subprocess_exec(
        *command, mock.url + case.endpoint, str(case.in_flight_max), changes, *map(str, inputs),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        said, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise BareError(errors.decode("utf-8", "replace").strip()[-ERROR_CHARS_MAX:])
    found: dict[str, float] = json.loads(said)
    return found


def cpu_seconds(processes: dict[str, list[int]]) -> dict[str, float]:
    """CPU seconds used so far by the processes of each stage."""
    return {stage: _sum(pids, lambda process: sum(process.cpu_times()[:2])) for stage, pids in processes.items()}


class Peak:
    """Peak resident memory of each stage in MiB, by sampling."""

    def __init__(self, processes: dict[str, list[int]]) -> None:
        self._processes = processes
        self.mib: dict[str, float] = dict.fromkeys(processes, 0.0)

    async def watch(self) -> None:
        """Sample until cancelled."""
        while True:
            for stage, pids in self._processes.items():
                used = _sum(pids, lambda process: process.memory_info().rss)
                self.mib[stage] = max(self.mib[stage], used / (1 << 20))
            await asyncio.sleep(SAMPLE_SECONDS)


def _sum(pids: list[int], measure: Callable[[psutil.Process], float]) -> float:
    """The sum of a measure over the processes that still run."""
    total = 0.0
    for pid in pids:
        with suppress(psutil.Error):
            total += measure(psutil.Process(pid))
    return total
