"""A log that repeats itself is thinned, or what one client or broker does would push out all else.

While a broker is away aiokafka says so some ten times a second, and a client can have a line written with each
request that it makes wrongly.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from tidemill import metrics

REPEAT_SECONDS: Final = 30.0
"""The same message is let through so many times in so long."""
LINES_MAX: Final = 20
"""How many times; those of the loggers of `THINNED` once."""
MESSAGES_MAX: Final = 1_000
"""Different messages that are remembered; beyond it all are forgotten, and said once more."""
THINNED: Final = ("aiokafka", "faust", "mode", "uvicorn", "tidemill.api.http.server")
"""Loggers that speak once for each try of a library, or for each thing that a client does wrong."""

Key = tuple[str, int, str, type[BaseException] | None]


class LogDedup(logging.Filter):
    """Lets the same message of a logger through `lines` times in `seconds`, then tells how many were left out.

    Messages are the same where their templates are: arguments, like a connection's number, differ each time.
    Those with a traceback are the same where their exceptions are of one kind, and `LINES_MAX` are let through.
    What is left out is counted, too (`tidemill_log_lines_suppressed_total`): the next one may never come.
    """

    def __init__(
        self,
        lines: int = LINES_MAX,
        seconds: float = REPEAT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._lines = lines
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._said: dict[Key, tuple[float, int, int]] = {}
        """Since when, how many were let through and how many left out."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record is let through; one that is tells how many were not."""
        kind = record.exc_info[0] if record.exc_info else None
        key = (record.name, record.levelno, str(record.msg), kind)
        lines = self._lines if kind is None else max(self._lines, LINES_MAX)
        now = self._clock()
        with self._lock:
            since, said, left_out = self._said.get(key, (now, 0, 0))
            is_over = now - since >= self._seconds
            if said >= lines and not is_over:
                self._said[key] = since, said, left_out + 1
                metrics.LOG_LINES_SUPPRESSED.inc()
                return False
            if len(self._said) >= MESSAGES_MAX:
                self._said.clear()
            self._said[key] = (now, 1, 0) if is_over else (since, said + 1, 0)
        if left_out:
            # Without arguments nothing is expanded any more.
            record.msg, record.args = f"{record.getMessage()} (and {left_out} like it in {now - since:.0f} s)", ()
        return True


def install() -> None:
    """Thin what is said; to be called once logging is set up."""
    split = _Split()
    for handler in logging.getLogger().handlers:
        handler.addFilter(split)


class _Split(logging.Filter):
    """Lets the loggers of `THINNED` say the same once, and others some times."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._thinned = LogDedup(1, clock=clock)
        self._others = LogDedup(clock=clock)

    def filter(self, record: logging.LogRecord) -> bool:
        hush = self._thinned if record.name.startswith(THINNED) else self._others
        return hush.filter(record)
