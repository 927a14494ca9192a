"""A receiver of webhooks as a process of its own: verifies each with OpenAI's SDK, fails some, and can be killed.

It appends a line of JSON for each call to a file: `id`, `type`, `batch`, `error` of the SDK, and `status`.
"""

import asyncio
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import openai
from aiohttp import web

from tidemill.local import parent_death
from tidemill.local.embedded import kraft

FAILURES_MAX = 3
"""Failures of one event; the pause doubles after each one."""


class Receiver:
    """A context manager; `start` and `kill` may be repeated, and the port stays the same.

    Args:
        calls: The file of the calls.
        command: Makes the command from the port and the further arguments; by default this module.
    """

    def __init__(self, calls: Path, command: Callable[[], list[str]] | None = None) -> None:
        self._calls = calls
        self._command = command or (lambda: [sys.executable, "-m", "support.receiver"])
        self._process: subprocess.Popen[bytes] | None = None
        self.port = kraft.free_port()
        self.url = f"http://127.0.0.1:{self.port}/hook"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self, secret: str, *, failing: float = 0.0) -> None:
        """Start to receive, and answer this share of the calls with 500."""
        command = [*self._command(), str(self.port), secret, str(self._calls), str(failing)]
        with self._calls.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(
                parent_death.command(command), stdout=log, stderr=log, cwd=Path(__file__).resolve().parents[1]
            )

    def kill(self) -> None:
        """Kill it, like a power cut."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def calls(self) -> list[dict[str, Any]]:
        """The calls so far."""
        if not self._calls.exists():
            return []
        # A kill may cut the last line short.
        return [json.loads(line) for line in self._calls.read_text().splitlines(keepends=True) if line[-1] == "\n"]


async def _serve(port: int, secret: str, calls: Path, failing: float) -> None:
    client = openai.OpenAI(api_key="unused")
    chance = random.Random(port)
    failed: Counter[str] = Counter()

    async def receive(request: web.Request) -> web.Response:
        body = await request.read()
        found: dict[str, Any] = {"id": request.headers.get("webhook-id"), "error": None}
        try:
            event = client.webhooks.unwrap(body, dict(request.headers), secret=secret)
            found |= {"type": event.type, "batch": event.data.id, "event": event.id}
        except (openai.InvalidWebhookSignatureError, ValueError) as error:
            found["error"] = str(error)
        fails = chance.random() < failing and failed[str(found["id"])] < FAILURES_MAX
        failed[str(found["id"])] += fails
        found["status"] = 500 if fails else 200
        with calls.open("a") as file:
            file.write(json.dumps(found) + "\n")
        return web.Response(status=found["status"])

    app = web.Application()
    app.router.add_post("/hook", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])))
