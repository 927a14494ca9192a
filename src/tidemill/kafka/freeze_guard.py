"""The leases of a process: who may have lost what it owned must not write before it knows.

A process that was stopped as a whole (SIGSTOP, a machine that slept) goes on in the middle of what it did, and
hears only later that others have its partitions. So it looks at the clock before a request leaves for the broker.
A thread notes the time again and again; where that stood still for long, everything did, and the process ends: its
successor, or itself after a start, reads again. A loop that is only busy does not hold up the thread.

A process that is cut off from the coordinator of its group alone is not frozen, and reaches the leaders of
partitions as before. It holds its writes once the coordinator has not counted it in for `LEASE_SECONDS`, which is
before its partitions can have another owner (`Membership`). What was on its way by then may still land later: so
nothing that is dangerous rests on this alone (docs/decisions/0037).
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

BEAT_SECONDS: Final = 0.5
FROZEN_SECONDS_MAX: Final = 3.0
"""Heartbeats go out every 2 s and a session lasts for 6 s, so who stood still for less owns what it had."""
FROZEN: Final = 71
"""Exit code of a process that was frozen for longer."""

SESSION_SECONDS: Final = 6.0
"""A process that is gone is noticed after this time, and its partitions go to another: the broker's least."""
LEASE_SECONDS: Final = SESSION_SECONDS - 1.0
"""From the sending of a heartbeat that was answered: for so long nobody else can have what this process owns.
The second between covers clocks of unlike rate, and the way from the check to the socket."""
HEARTBEAT_SECONDS_MAX: Final = 3.0
"""A coordinator that has not answered by then is asked over a new connection."""
LOOK_SECONDS: Final = 0.1

log = logging.getLogger(__name__)


class Lease:
    """The lease of this process.

    Args:
        end: Ends the process at once.
        clock: Seconds that go on while the process is frozen.
    """

    def __init__(
        self, end: Callable[[], object] = lambda: os._exit(FROZEN), *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._end = end
        self._clock = clock
        self._beat_at = clock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        """Begin to note the time."""
        self._beat_at = self._clock()
        self._thread.start()

    def stop(self) -> None:
        """Note it no more."""
        self._stopped.set()

    def check(self) -> None:
        """End the process where it has stood still; to be called on any thread before something is written."""
        if (seconds := self._clock() - self._beat_at) > FROZEN_SECONDS_MAX and not self._stopped.is_set():
            log.critical("everything stood still for %.1f s; others may own by now what this process did", seconds)
            self._end()

    def beat(self) -> None:
        """Note the time, unless it stood still."""
        self.check()
        self._beat_at = self._clock()

    def _run(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            self.beat()


class Membership:
    """Whether the coordinator of a group still counts this process in, as far as it has said so of late.

    Args:
        clock: Seconds that nobody steps; read on any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = float("inf")
        """Before the first assignment there is nothing to lose."""
        self._told = False

    @property
    def holds(self) -> bool:
        """Whether what this process owns is surely its own."""
        return self._clock() < self._until

    def renewed(self, at: float) -> None:
        """The coordinator has answered what was sent at that time."""
        self._until = at + LEASE_SECONDS
        if self._told:
            self._told = False
            log.warning("the coordinator of the group answers again")

    def left(self) -> None:
        """The process has let go of all that it owned, so there is nothing to lose."""
        self._until = float("inf")

    async def held(self) -> None:
        """Wait until it holds."""
        while not self.holds:
            if not self._told:
                self._told = True
                log.warning("the coordinator of the group does not answer: nothing is written until it does")
            await asyncio.sleep(LOOK_SECONDS)


class Brake:
    """Begins no work while a membership does not hold: another process may do the same by then.

    Args:
        membership: The process's in its group.
        work: What can `halt` and `resume`.
    """

    def __init__(self, membership: Membership, work: Any) -> None:
        self._membership = membership
        self._work = work
        self._is_on = False

    def look(self) -> None:
        """Halt or resume; to be called about each second."""
        if not self._membership.holds:
            self._is_on = True
            self._work.halt()
        elif self._is_on:
            self._is_on = False
            self._work.resume()

    def release(self) -> None:
        """Partitions are let go of: work begins again with the next assignment."""
        self._is_on = False


def followed(coordinator: Any, membership: Membership) -> None:
    """Have a membership renewed by what a group's coordinator answers; a second time changes nothing.

    Args:
        coordinator: aiokafka's `GroupCoordinator`, which has just got an assignment.
        membership: The process's in this group.
    """
    if getattr(coordinator, "is_followed", False):
        return
    beat, send, clock = coordinator._do_heartbeat, coordinator._send_req, time.monotonic  # noqa: SLF001

    async def heartbeat() -> Any:
        # Of a broker that is cut off without a word nothing comes for a long time.
        timer = asyncio.get_running_loop().call_later(HEARTBEAT_SECONDS_MAX, _hang_up, coordinator)
        at = clock()
        try:
            counts = await beat()
        finally:
            timer.cancel()
        if counts:
            membership.renewed(at)
        return counts

    async def sent(request: Any) -> Any:
        at = clock()
        answer = await send(request)
        if type(request).__name__.startswith("SyncGroup") and not answer.error_code:
            membership.renewed(at)
        return answer

    membership.renewed(clock())
    coordinator._do_heartbeat, coordinator._send_req = heartbeat, sent  # noqa: SLF001
    coordinator.is_followed = True


def _hang_up(coordinator: Any) -> None:
    """Close the connections to a coordinator, so that whatever waits for it fails."""
    client = coordinator._client  # noqa: SLF001
    for (node, _), connection in list(client._conns.items()):  # noqa: SLF001
        if node == coordinator.coordinator_id:
            connection.close()


def guarded(client: Any, check: Callable[[], None], held: Callable[[], Awaitable[None]] | None = None) -> None:
    """Have the leases checked before each request that a client of Kafka sends; a second time changes nothing.

    Args:
        client: aiokafka's `AIOKafkaClient`, as a producer has one.
        check: Does not return where the process was frozen.
        held: Waits until the process is counted in by its group.
    """
    if getattr(client, "is_guarded", False):
        return
    send = client.send

    async def checked(*args: Any, **kwargs: Any) -> Any:
        if held is not None:
            await held()
        check()
        return await send(*args, **kwargs)

    client.send = checked
    client.is_guarded = True
