"""The harness's handle on the backend: its address, its counters, its behaviour."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Self

from chaos.traffic import INPUTS_PER_CALL
from support.waiting import WAIT_SECONDS_MAX


class Backend:
    """A process of `mock.py`, as a context manager."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._process: subprocess.Popen[bytes] | None = None
        self.base = ""

    def __enter__(self) -> Self:
        command = [sys.executable, str(Path(__file__).with_name("mock.py")), "--seed", str(self._seed)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.base = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate(timeout=WAIT_SECONDS_MAX)

    def stats(self) -> dict[str, Any]:
        """Its counters."""
        found: dict[str, Any] = json.loads(_fetch(f"{self.base}/stats"))
        return found

    def calls_of(self, key: str) -> tuple[int, float]:
        """Calls with a key, and when the last one came, on the monotonic clock; 0 before the first."""
        calls, at = self.stats()["callers"].get(key, (0, 0.0))
        return calls, at

    def set(self, **behaviour: float | str) -> None:
        """Change its behaviour; see `mock.Mock.set`."""
        query = "&".join(f"{name}={value}" for name, value in behaviour.items())
        _fetch(f"{self.base}/set?{query}", method="POST")

    def models(self, *names: str, max_in_flight: int, timeout_seconds: float) -> dict[str, dict[str, Any]]:
        """The table `models` of a configuration."""
        return {
            name: {
                "backends": [{"url": f"{self.base}/v1"}],
                "max_in_flight": max_in_flight,
                "timeout_seconds": timeout_seconds,
                "inputs_per_call": INPUTS_PER_CALL[name],
                "price": {"input_per_million": 0.3, "output_per_million": 1.1},
            }
            for name in names
        }


def _fetch(url: str, method: str = "GET") -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=WAIT_SECONDS_MAX) as reply:
        content: bytes = reply.read()
    return content
