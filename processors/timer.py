"""A timer that is due at the earliest of the times that were set."""

import asyncio
from collections.abc import Callable


class EarliestTimer:
    """Calls a function once at the earliest time; needs a running event loop, by whose clock times are."""

    def __init__(self, call: Callable[[], None]) -> None:
        """Set no time yet."""
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._at = 0.0
        """The time of the handle, which uvloop rounds."""

    def set(self, at: float) -> None:
        """Call at this time, unless an earlier one is set."""
        if self._handle is None or at < self._at:
            self.cancel()
            self._at = at
            self._handle = self._loop.call_at(at, self._due)

    def cancel(self) -> None:
        """Forget the time that is set."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _due(self) -> None:
        self._handle = None
        self._call()
