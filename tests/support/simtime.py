"""An event loop on simulated time: it never waits, and a run depends only on the code and the seed.

A process is a set of tasks, which affect the outside only through `Process.perform`. A run can kill it at each
await; then its code has no further effect.
"""

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH = 1_790_000_000.0
"""Unix time at the beginning."""
WAY_SECONDS_MAX = 0.1
"""The longest time to the outside, and back."""
LATE_SECONDS_MAX = 20.0
LATE_CHANCE = 0.5
STEPS_MAX = 2_000_000
"""Steps of the loop in one run; more mean an endless loop."""


class _Jump(selectors.DefaultSelector):
    """Advances the time to the next timer, instead of waiting for it."""

    loop: "SimulatedLoop"

    def select(self, timeout=None):
        self.loop.jump(timeout)
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """The loop; `now` is Unix time. Once the run `is_over`, faults do not count."""

    is_over = False

    def __init__(self) -> None:
        selector = _Jump()
        selector.loop = self
        self._seconds = 0.0
        self._steps = 0
        self._fault: BaseException | None = None
        super().__init__(selector)
        self.set_exception_handler(self._note_fault)

    def time(self) -> float:
        return self._seconds

    def now(self) -> float:
        """Unix time."""
        return EPOCH + self._seconds

    def jump(self, seconds: float | None) -> None:
        """Let time pass; raises the exception of a callback, or of a task that no process started."""
        if self.is_over:
            return
        if self._fault is not None:
            raise self._fault
        if seconds is None:
            raise RuntimeError("everything waits for something that will not come")
        self._steps += 1
        assert self._steps < STEPS_MAX, "the run does not end"
        self._seconds += max(0.0, seconds)

    def _note_fault(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # Tasks of a killed process end by cancellation.
        if not isinstance(error := context.get("exception"), asyncio.CancelledError):
            self._fault = self._fault or error


def run(main: Callable[[SimulatedLoop], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on a loop of its own."""
    loop = SimulatedLoop()
    # The pauses between tries are drawn from it.
    random.seed(0)
    try:
        return loop.run_until_complete(main(loop))
    finally:
        loop.is_over = True
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


class Process:
    """A process that a run can kill at any await.

    Attributes:
        ahead: Seconds that its clock is ahead of true time.
        errors: Exceptions that ended its tasks.
        on_kill: Ends what else is running in it.
    """

    def __init__(self, loop: SimulatedLoop, chance: random.Random) -> None:
        self.loop = loop
        self.chance = chance
        self.is_alive = True
        self.ahead = 0.0
        self.errors: list[BaseException] = []
        self.owns_partitions = True
        self.on_kill: Callable[[], object] = lambda: None
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def now(self) -> float:
        """Unix time by the process's clock."""
        return self.loop.now() + self.ahead

    def start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Begin a task of the process."""
        task = self.loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    async def perform(self, effect: Callable[[], T], *, late: bool = False) -> T:
        """Cause an effect outside of the process; the way there and the answer take time.

        Args:
            effect: Causes it, in one step.
            late: Whether the effect may still happen after the process was killed.
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
        """Let the time of a one-way message pass."""
        self.check()
        await asyncio.sleep(self.chance.random() * WAY_SECONDS_MAX)
        self.check()

    def check(self) -> None:
        """Stop the caller if the process is killed."""
        if not self.is_alive:
            raise asyncio.CancelledError

    async def wait_owned(self) -> None:
        """Return if the process owns its partitions; otherwise never return."""
        if not self.owns_partitions:
            await asyncio.Event().wait()

    def kill(self) -> None:
        """Kill the process."""
        self.is_alive = False
        self.on_kill()
        for task in list(self._tasks):
            task.cancel()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Note that an exception ended a task, which also ends the run."""
        if self.is_alive:
            self.errors.append(error)
            self.loop.call_exception_handler({"message": "a task failed", "exception": error})
