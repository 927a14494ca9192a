"""An event loop on simulated time: it waits for nothing, and what happens follows from the code and its chance.

A process is a number of tasks and the doors through which they reach the outside. It can be ended at each of its
awaits: from then on no door of it opens, whatever its code still does.
"""

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH = 1_790_000_000.0
"""Unix time at the beginning."""
DOOR_SECONDS_MAX = 0.1
"""How long the way to the outside takes, and the way back."""
LATE_SECONDS_MAX = 20.0
LATE_CHANCE = 0.5
STEPS_MAX = 2_000_000
"""Of the loop, in one run; more is a loop without an end."""


class _Jump(selectors.DefaultSelector):
    """Where there is nothing to do, the next timer's time has come."""

    loop: "SimulatedLoop"

    def select(self, timeout=None):
        if timeout is None:
            raise RuntimeError("everything waits for something that will not come")
        self.loop.jump(timeout)
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """The loop; `now` is Unix time."""

    def __init__(self) -> None:
        selector = _Jump()
        selector.loop = self
        self._seconds = 0.0
        self._steps = 0
        super().__init__(selector)

    def time(self) -> float:
        return self._seconds

    def now(self) -> float:
        """Unix time."""
        return EPOCH + self._seconds

    def jump(self, seconds: float) -> None:
        """Let time pass."""
        self._steps += 1
        assert self._steps < STEPS_MAX, "the run does not end"
        self._seconds += max(0.0, seconds)


def run(main: Callable[[SimulatedLoop], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on a loop of its own."""
    loop = SimulatedLoop()
    # The pauses between tries are drawn from it.
    random.seed(0)
    # A process that was ended may leave anything behind.
    loop.set_exception_handler(lambda _loop, _context: None)
    try:
        return loop.run_until_complete(main(loop))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


class Process:
    """What can be ended at any await.

    Attributes:
        ahead: By how many seconds its clock is ahead of true time.
        errors: What its tasks died of by themselves.
    """

    def __init__(self, loop: SimulatedLoop, chance: random.Random) -> None:
        self.loop = loop
        self.chance = chance
        self.is_alive = True
        self.ahead = 0.0
        self.errors: list[BaseException] = []
        self.has_lease = True
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def now(self) -> float:
        """Unix time as the process takes it."""
        return self.loop.now() + self.ahead

    def start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Begin a task of the process."""
        task = self.loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    async def door(self, effect: Callable[[], T], *, late: bool = False) -> T:
        """Do something outside: it takes a while to get there, and a while until the answer is back.

        Args:
            effect: What is done, in one step.
            late: Whether what was on its way when the process ended may be done all the same, later.
        """
        try:
            await self.pass_time()
        except asyncio.CancelledError:
            if late and not self.is_alive and self.chance.random() < LATE_CHANCE:
                self.loop.call_later(self.chance.uniform(0, LATE_SECONDS_MAX), effect)
            raise
        result = effect()
        await self.pass_time()
        return result

    async def pass_time(self) -> None:
        """One way."""
        self.check()
        await asyncio.sleep(self.chance.random() * DOOR_SECONDS_MAX)
        self.check()

    def check(self) -> None:
        """A process that was ended does nothing any more."""
        if not self.is_alive:
            raise asyncio.CancelledError

    async def leased(self) -> None:
        """Wait for the lease; one that was lost does not come back before the process ends."""
        if not self.has_lease:
            await asyncio.Event().wait()

    def kill(self) -> None:
        """End it here and now."""
        self.is_alive = False
        for task in list(self._tasks):
            task.cancel()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None and self.is_alive:
            self.errors.append(error)
