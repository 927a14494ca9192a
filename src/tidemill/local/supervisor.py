"""All processes of one installation: starts them, keeps them running, stops them in order."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

from tidemill.local.child import Child, Program, Say

STOP_SECONDS_MAX = 15.0
STAGES_STOP_SECONDS_MAX = 10.0
BASE_STOP_SECONDS_MIN = 3.0
"""The base has at least this time to stop, however long the stages took."""


class Supervisor:
    """Runs programs in two layers: the base (the broker, the demo), and the stages, which need it.

    It calls `changed` when a process has started or ended.
    """

    def __init__(self, *, say: Say, changed: Callable[[], None] = lambda: None) -> None:
        self._say = say
        self._changed = changed
        self._base: dict[Child, asyncio.Task[None]] = {}
        self._stages: dict[Child, asyncio.Task[None]] = {}

    @property
    def processes(self) -> dict[str, list[int]]:
        """Ids of the running processes, by stage."""
        found: dict[str, list[int]] = {}
        for child in (*self._stages, *self._base):
            found.setdefault(child.stage, []).extend([child.pid] if child.pid else [])
        return found

    async def start(self, programs: Iterable[Program], *, base: bool = False) -> None:
        """Start programs concurrently, return when all are ready, and keep them running.

        Raises:
            ChildError: One of them cannot be started; the others run until `stop`.
        """
        layer = self._base if base else self._stages
        started = []
        for program in programs:
            child = Child(program, say=self._say, changed=self._changed)
            layer[child] = asyncio.get_running_loop().create_task(child.run())
            started.append((child, layer[child]))
        await _all_ready(started)

    async def stop(self) -> None:
        """Stop the stages, then the base; kill processes that do not stop in time, by `Child.stop`."""
        stop_by = time.monotonic() + STOP_SECONDS_MAX
        await _stop(self._stages, STAGES_STOP_SECONDS_MAX)
        await _stop(self._base, max(stop_by - time.monotonic() - 1, BASE_STOP_SECONDS_MIN))

    def kill(self) -> None:
        """Kill everything."""
        for child in (*self._stages, *self._base):
            child.kill()


async def _all_ready(started: list[tuple[Child, asyncio.Task[None]]]) -> None:
    tasks = [task for _, task in started]
    ready = asyncio.gather(*(child.ready.wait() for child, _ in started))
    try:
        # A child's task ends here only on an error or a stop.
        waiting: list[asyncio.Future[Any]] = [ready, *tasks]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        ready.cancel()
        await asyncio.gather(ready, return_exceptions=True)


async def _stop(layer: dict[Child, asyncio.Task[None]], seconds_max: float) -> None:
    await asyncio.gather(*(child.stop(seconds_max) for child in layer))
    await asyncio.gather(*layer.values(), return_exceptions=True)
