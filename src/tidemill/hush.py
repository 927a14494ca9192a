"""A log that repeats itself is thinned: while a broker is away aiokafka says so some ten times a second."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

REPEAT_SECONDS: Final = 30.0
"""The same message is let through once in so long."""
MESSAGES_MAX: Final = 1_000
"""Different messages that are remembered; beyond it all are forgotten, and said once more."""
THINNED: Final = ("aiokafka", "faust", "mode", "uvicorn", "tidemill.api.server")
"""Loggers that speak once for each try of a library, or for each thing that a client does wrong."""


class Hush(logging.Filter):
    """Lets the same message of a logger through once in `seconds`, with the number of those that were left out.

    Messages are the same where their templates are: arguments, like a connection's number, differ each time. An
    error with a traceback is always let through.
    """

    def __init__(self, seconds: float = REPEAT_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._said: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record is let through; one that is tells how many were not."""
        if record.exc_info is not None:
            return True
        key = (record.name, record.levelno, str(record.msg))
        now = self._clock()
        with self._lock:
            at, left_out = self._said.get(key, (float("-inf"), 0))
            if now - at < self._seconds:
                self._said[key] = at, left_out + 1
                return False
            if len(self._said) >= MESSAGES_MAX:
                self._said.clear()
            self._said[key] = now, 0
        if left_out:
            # Without arguments nothing is expanded any more.
            record.msg, record.args = f"{record.getMessage()} (and {left_out} like it in {now - at:.0f} s)", ()
        return True


def install() -> None:
    """Thin what the loggers of `THINNED` say; to be called once logging is set up."""
    hush = Hush()
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Only(hush))


class _Only(logging.Filter):
    """Asks another filter about records of the loggers of `THINNED` alone."""

    def __init__(self, hush: Hush) -> None:
        super().__init__()
        self._hush = hush

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.name.startswith(THINNED) or self._hush.filter(record)
