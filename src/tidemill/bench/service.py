"""The doors of the bench: a service of its own, started as anybody would, and the mock backend that it calls."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from tidemill.bench.cases import CALM, IN_FLIGHT_MAX, MODEL
from tidemill.metrics import LIMIT
from tidemill.schemas.resources import access

START_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 30.0
POLL_SECONDS = 0.1
KEY = access.new_secret()


class Mock:
    """The mock backend behind an address; it is told how to behave, and says what it was asked."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")

    async def behave(self, backend: dict[str, str]) -> None:
        """Behave so, else calmly, and forget what was counted."""
        await self.change({**CALM, **backend})
        await self._post("/reset", {})

    async def change(self, backend: dict[str, str]) -> None:
        """From now on behave so in these respects."""
        await self._post("/set", backend)

    async def stats(self) -> dict[str, Any]:
        """Calls, good ones, repeats, in flight."""
        async with aiohttp.ClientSession() as session, session.get(self._url + "/stats") as answer:
            found: dict[str, Any] = json.loads(await answer.read())
            return found

    async def _post(self, path: str, params: dict[str, str]) -> None:
        async with aiohttp.ClientSession() as session, session.post(self._url + path, params=params) as answer:
            answer.raise_for_status()


class Service:
    """`tidemill up` in a folder of its own; an asynchronous context manager."""

    def __init__(self, folder: Path, mock: str) -> None:
        self._folder = folder
        self._mock = mock.rstrip("/").removesuffix("/v1")
        self._process: subprocess.Popen[bytes] | None = None
        self.base_url = ""
        self.processes: dict[str, list[int]] = {}
        self._health: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        models = {MODEL: {"backends": [{"url": f"{self._mock}/v1"}], "max_in_flight": IN_FLIGHT_MAX}}
        environ = {**os.environ, "TIDEMILL_MODELS": json.dumps(models), "TIDEMILL_API_KEY": KEY}
        run = self._folder / "run.json"
        command = [sys.executable, "-P", "-m", "tidemill", "up", "--port", "0", "--data", str(self._folder)]
        self._process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)  # noqa: ASYNC220, S603
        async with asyncio.timeout(START_SECONDS_MAX):
            while not run.exists():
                if self._process.poll() is not None:
                    raise OSError("the service did not start")
                await asyncio.sleep(POLL_SECONDS)
        told = json.loads(run.read_text("utf-8"))
        self.base_url = told["api"]
        self.processes = told["processes"]
        self._health = told["health"]
        return self

    async def limit(self) -> float:
        """How many calls there may be at this time, of all processes of processors."""
        total = 0.0
        async with aiohttp.ClientSession() as session:
            for name, url in self._health.items():
                if not name.startswith("processors"):
                    continue
                async with session.get(f"{url}/metrics") as answer:
                    lines = (await answer.text()).splitlines()
                total += sum(float(line.split()[-1]) for line in lines if line.startswith(LIMIT.name + "{"))
        return total

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            await asyncio.to_thread(self._process.wait, STOP_SECONDS_MAX)
