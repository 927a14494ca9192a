"""Memory budgets: bounds on the bytes of large replies and of large lines in a process.

A reply and a line may have many MiB (`reply_bytes_max`, `line_bytes_max`), and hundreds of calls may be in flight.
Small replies do not count, so they never wait for large ones. Large ones count each byte as it arrives. Above the
budget only the oldest incomplete reply is read, so that even a reply larger than the budget arrives; the
connections of the others pause. A pause does not count against a call's time. A reply that arrives more slowly
than `BYTES_A_SECOND_MIN` while others wait is given up.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

REPLIES_BYTES_MAX: Final = 128 << 20
"""Bytes of large replies, from their first byte until the log has their result."""
SMALL_BYTES: Final = 64 * 1024
"""A reply up to this size does not count."""
STEP_BYTES: Final = 256 * 1024
"""Bytes that a connection may deliver before it pauses."""
CHECK_SECONDS: Final = 10.0
BYTES_A_SECOND_MIN: Final = 16 * 1024
LINES_BYTES_MAX: Final = 128 << 20
"""Bytes of large lines whose calls are in flight."""


@dataclass(slots=True, eq=False)
class ReplyBytes:
    """The bytes of one reply; closing twice is allowed."""

    _budget: "LargeReplies | None"
    _resume: Callable[[], None]
    stop: Callable[[], None]
    """Gives up the reply."""
    size: int = 0
    checked: int = -1
    """Its size at the last check of its speed."""
    is_waiting: bool = False
    is_whole: bool = False

    def grow(self, size: int) -> bool:
        """Count more bytes; False if reading must pause until `resume` is called."""
        return self._budget is None or self._budget.grow(self, size)

    def finish(self) -> None:
        """Note that the reply is complete; its bytes count until `close`."""
        self.is_whole = True
        self.is_waiting = False
        if self._budget is not None:
            self._budget.wake()

    def close(self) -> None:
        """Free the bytes."""
        budget, self._budget = self._budget, None
        if budget is not None:
            budget.forget(self)

    def resume(self) -> None:
        """Resume reading from the connection."""
        self.is_waiting = False
        self._resume()


class LargeReplies:
    """The budget of all large replies of a process; `share` needs a running event loop."""

    def __init__(self, bytes_max: int = REPLIES_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._shares: dict[ReplyBytes, None] = {}
        """Oldest first."""
        self._timer: asyncio.TimerHandle | None = None
        self.used = 0

    def share(self, resume: Callable[[], None], stop: Callable[[], None]) -> ReplyBytes:
        """Begin to count a reply.

        After `grow` has returned False, `resume` is called when reading may go on; `stop` gives up the reply
        and closes the share.
        """
        share = ReplyBytes(self, resume, stop)
        self._shares[share] = None
        return share

    def grow(self, share: ReplyBytes, size: int) -> bool:
        """See `ReplyBytes.grow`."""
        self.used += size
        share.size += size
        if self.used <= self._bytes_max or share is self._first:
            return True
        share.is_waiting = True
        if self._timer is None:
            self._check_later()
        return False

    def forget(self, share: ReplyBytes) -> None:
        """See `ReplyBytes.close`."""
        self.used -= share.size
        del self._shares[share]
        self.wake()

    def wake(self) -> None:
        """Resume the replies that have waited longest, as far as there is room."""
        room = self._bytes_max - self.used
        for share in [share for share in self._shares if share.is_waiting]:
            if room > 0 or share is self._first:
                share.resume()
                room -= STEP_BYTES

    @property
    def _first(self) -> ReplyBytes | None:
        """The reply that is read even without room; None while a complete one is about to free some."""
        if any(share.is_whole for share in self._shares):
            return None
        return next(iter(self._shares), None)

    def _check_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(CHECK_SECONDS, self._check)

    def _check(self) -> None:
        self._timer = None
        if not any(share.is_waiting for share in self._shares):
            return
        for share in list(self._shares):
            if share.is_waiting or share.is_whole:
                share.checked = -1
            elif share.checked >= 0 and share.size < share.checked + CHECK_SECONDS * BYTES_A_SECOND_MIN:
                share.stop()
            else:
                share.checked = share.size
        self._check_later()


@dataclass(slots=True, eq=False)
class Request:
    """A request for memory."""

    size: int
    granted: Callable[[], None]
    is_granted: bool = False


class LineBudget:
    """The memory for large lines with calls in flight; a line larger than the budget is called alone."""

    def __init__(self, bytes_max: int = LINES_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._used = 0
        self._requests: deque[Request] = deque()

    def take(self, size: int) -> bool:
        """Take bytes until `release`, if they are free and no request waits."""
        size = min(size, self._bytes_max)
        if self._requests or self._used + size > self._bytes_max:
            return False
        self._used += size
        return True

    def ask(self, size: int, granted: Callable[[], None]) -> Request:
        """Take bytes as soon as they are free, after earlier requests; calls `granted` if that is not at once."""
        request = Request(min(size, self._bytes_max), granted)
        if self.take(size):
            request.is_granted = True
        else:
            self._requests.append(request)
        return request

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Wait for bytes, and hold them."""
        granted = asyncio.Event()
        request = self.ask(size, granted.set)
        try:
            if not request.is_granted:
                await granted.wait()
            yield
        finally:
            self.withdraw(request)

    def withdraw(self, request: Request) -> None:
        """Cancel a request, or release the bytes that it got."""
        if request.is_granted:
            self.release(request.size)
        else:
            self._requests.remove(request)
            self._serve()

    def release(self, size: int) -> None:
        """Free bytes."""
        self._used -= min(size, self._bytes_max)
        self._serve()

    def _serve(self) -> None:
        while self._requests and self._used + self._requests[0].size <= self._bytes_max:
            request = self._requests.popleft()
            self._used += request.size
            request.is_granted = True
            request.granted()
