"""Suppresses repeated log lines, so that one client or broker cannot crowd out all others.

Without a broker aiokafka logs about ten lines a second, and each bad request of a client can log a line.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from tidemill import metrics
from tidemill.bounded_dict import BoundedDict

REPEAT_SECONDS: Final = 30.0
"""The period within which lines are bounded."""
LINES_MAX: Final = 20
"""Lines per message; loggers of `THINNED` get one."""
MESSAGES_MAX: Final = 1_000
"""Distinct messages that the filter remembers; beyond that, the one not logged for longest is forgotten."""
THINNED: Final = ("aiokafka", "faust", "mode", "opentelemetry", "uvicorn", "tidemill.api.http.server")
"""Loggers that write a line per attempt of a library, or per mistake of a client."""
ACCESS: Final = "tidemill.access"
"""The logger of requests, which passes all lines because an operator asked for them."""

START_SECONDS: Final = 60.0
"""Time that a broker may need to start."""
NO_COORDINATOR: Final = "GroupCoordinatorNotAvailableError"

Key = tuple[str, int, str, type[BaseException] | None]


class StartFilter(logging.Filter):
    """Drops what is no error while the broker starts: it has no coordinator of consumer groups yet.

    The client asks again until there is one. A process that runs longer than `START_SECONDS` logs the error.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock, self._began = clock, clock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record passes."""
        has_begun = self._clock() - self._began >= START_SECONDS
        return has_begun or not (record.name.startswith("aiokafka") and NO_COORDINATOR in record.getMessage())


class LogDedup(logging.Filter):
    """Bounds the lines of each message in `REPEAT_SECONDS`; the next line says how many were suppressed.

    Messages are equal if their templates are, since arguments such as a connection's number always differ.
    Messages with a traceback are equal if their exceptions have the same type; `LINES_MAX` of them pass. A metric
    counts the suppressed lines (`tidemill_log_lines_suppressed_total`), since there may never be a next line.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: BoundedDict[Key, tuple[float, int, int]] = BoundedDict(MESSAGES_MAX)
        """By message: the start of its period, and the numbers of passed and suppressed lines."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record passes; adds the number of suppressed lines to its message."""
        if record.name == ACCESS:
            return True
        kind = record.exc_info[0] if record.exc_info else None
        key = (record.name, record.levelno, str(record.msg), kind)
        lines = 1 if kind is None and record.name.startswith(THINNED) else LINES_MAX
        now = self._clock()
        with self._lock:
            since, passed, suppressed = self._seen.get(key, (now, 0, 0))
            is_over = now - since >= REPEAT_SECONDS
            if passed >= lines and not is_over:
                self._seen[key] = since, passed, suppressed + 1
                metrics.LOG_LINES_SUPPRESSED.inc()
                return False
            self._seen[key] = (now, 1, 0) if is_over else (since, passed + 1, 0)
        if suppressed:
            record.msg = f"{record.msg} (and {suppressed} like it in {now - since:.0f} s)"
        return True
