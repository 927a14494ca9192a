"""Keeps a process that may have lost its partitions from writing before it learns of the loss.

- `FreezeGuard`: a process that was frozen as a whole (SIGSTOP, a machine that slept) resumes in the middle of its
  work, and learns only later that other processes have taken over its partitions. A thread of the process records
  the time twice a second. A gap in these times means that the whole process stood still, and the process exits
  before it sends another request; its successor reads the records again. A busy event loop does not delay the
  thread.
- `Membership`: a process that is cut off only from the coordinator of its consumer group still reaches the leaders
  of its partitions. It stops writing once the coordinator has not answered for `MEMBERSHIP_SECONDS`, before its
  partitions can have another owner.

The broker may still append a request that was in transit by then, so correctness does not rest on this module
alone (docs/decisions/0037).
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tidemill.schemas.ports import Monotonic

RECORD_SECONDS: Final = 0.5
"""How often the thread records the time."""
FROZEN_SECONDS_MAX: Final = 3.0
"""After a shorter freeze it still owns its partitions: heartbeats leave every 2 s, and a session lasts 6 s."""
FROZEN: Final = 71
"""Exit code of a process that was frozen for longer."""

SESSION_SECONDS: Final = 6.0
"""The broker reassigns the partitions of a process that has been silent for this long; brokers accept no less."""
MEMBERSHIP_SECONDS: Final = SESSION_SECONDS - 1.0
"""How long an answered heartbeat proves the membership, from its sending. The second of margin covers clocks of
different rates and the time from the check to the socket."""
HEARTBEAT_SECONDS_MAX: Final = 3.0
"""After this time without an answer, the next heartbeat goes over a new connection."""
LOOK_SECONDS: Final = 0.1

log = logging.getLogger(__name__)


class FreezeGuard:
    """Ends the process by `end` after a freeze; `clock` continues while the process is frozen."""

    def __init__(
        self, end: Callable[[], object] = lambda: os._exit(FROZEN), *, clock: Monotonic = time.monotonic
    ) -> None:
        self._end = end
        self._clock = clock
        self._recorded_at = clock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="freeze guard", daemon=True)

    def start(self) -> None:
        """Start the thread that records the time."""
        self._recorded_at = self._clock()
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()

    def check(self) -> None:
        """End the process if it was frozen; call this before each write, on any thread."""
        if (seconds := self._clock() - self._recorded_at) > FROZEN_SECONDS_MAX and not self._stopped.is_set():
            log.critical("the process was frozen for %.1f s; other processes may own its partitions now", seconds)
            self._end()

    def record(self) -> None:
        """Record the time, unless the process was frozen."""
        self.check()
        self._recorded_at = self._clock()

    def _run(self) -> None:
        while not self._stopped.wait(RECORD_SECONDS):
            self.record()


class Membership:
    """The membership of this process in its consumer group, as the coordinator last confirmed it; thread-safe."""

    def __init__(self, clock: Monotonic = time.monotonic) -> None:
        self.clock = clock
        """The clock of its times."""
        self._until = float("inf")
        """Infinite while the process owns no partition."""
        self._is_waiting = False

    @property
    def is_valid(self) -> bool:
        """Whether no other process can own the partitions of this one."""
        return self.clock() < self._until

    def renew(self, sent_at: float) -> None:
        """Extend the membership: the coordinator has answered a request sent at that time."""
        self._until = sent_at + MEMBERSHIP_SECONDS
        if self._is_waiting:
            self._is_waiting = False
            log.warning("the coordinator of the group answers again")

    def clear(self) -> None:
        """The process has left all its partitions, so no other owner can conflict with it."""
        self._until = float("inf")

    async def wait_valid(self) -> None:
        """Wait until the membership is valid."""
        while not self.is_valid:
            if not self._is_waiting:
                self._is_waiting = True
                log.warning("the coordinator of the group does not answer: writes wait until it does")
            await asyncio.sleep(LOOK_SECONDS)


class MembershipGuard:
    """Halts work (`halt`, `resume`) without a valid membership, when another process may do the same work."""

    def __init__(self, membership: Membership, work: Any) -> None:
        self._membership = membership
        self._work = work
        self._has_halted = False

    def check(self) -> None:
        """Halt or resume the work; call this about once a second."""
        if not self._membership.is_valid:
            self._has_halted = True
            self._work.halt()
        elif self._has_halted:
            self._has_halted = False
            self._work.resume()

    def reset(self) -> None:
        """The partitions are revoked: the next assignment resumes the work."""
        self._has_halted = False


def track_membership(coordinator: Any, membership: Membership) -> None:
    """Renew a membership with each answer of a group's `GroupCoordinator`; a second call has no effect."""
    if getattr(coordinator, "is_tracked", False):
        return
    beat, send, clock = coordinator._do_heartbeat, coordinator._send_req, membership.clock  # noqa: SLF001

    async def heartbeat() -> Any:
        # A broker behind a broken network sends no error for a long time.
        timer = asyncio.get_running_loop().call_later(HEARTBEAT_SECONDS_MAX, _disconnect, coordinator)
        at = clock()
        try:
            is_member = await beat()
        finally:
            timer.cancel()
        if is_member:
            membership.renew(at)
        return is_member

    async def send_request(request: Any) -> Any:
        at = clock()
        answer = await send(request)
        if type(request).__name__.startswith("SyncGroup") and not answer.error_code:
            membership.renew(at)
        return answer

    membership.renew(clock())
    coordinator._do_heartbeat, coordinator._send_req = heartbeat, send_request  # noqa: SLF001
    coordinator.is_tracked = True


def _disconnect(coordinator: Any) -> None:
    """Close the connections to a coordinator, so that its pending requests fail."""
    client = coordinator._client  # noqa: SLF001
    for (node, _), connection in list(client._conns.items()):  # noqa: SLF001
        if node == coordinator.coordinator_id:
            connection.close()


def guard_requests(client: Any, wait: Callable[[], Awaitable[None]]) -> None:
    """Await `wait` before each request of an `AIOKafkaClient`; a second call has no effect."""
    if getattr(client, "is_guarded", False):
        return
    send = client.send

    async def send_guarded(*args: Any, **kwargs: Any) -> Any:
        await wait()
        return await send(*args, **kwargs)

    client.send = send_guarded
    client.is_guarded = True
