"""Logs when a server stops taking calls, and when it takes them again.

A log is read by people who may not read a batch, so no line has a server's own words, which may quote a prompt.
"""

import logging
from collections.abc import Sequence
from typing import Final

from tidemill.processors.scheduling.stalls import unquoted
from tidemill.schemas.resources.load import Cause, ServerLoad
from tidemill.schemas.resources.waiting import Reason

QUIET_SECONDS: Final = 30.0
"""Between two lines about one server: one that comes and goes cannot fill the log."""
FAULTS: Final = frozenset({
    Reason.SERVER_UNREACHABLE, Reason.SERVER_REFUSES, Reason.SERVER_FAILS, Reason.SERVER_SILENT, Reason.ACCESS,
})  # fmt: skip
"""Causes that are not by settings or in normal operation."""

_log = logging.getLogger(__name__)


class ServerLog:
    """Logs each change of a server's fault; keeps the last line about each server."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[Reason | None, float]] = {}
        """By server: the fault of the last line, and when that was; nothing of a server without a line."""

    def look(self, servers: Sequence[ServerLoad], now: float) -> None:
        """Log a line for each server whose fault has changed; `now` is by the event loop's clock."""
        for server in servers:
            cause = server.cause if server.cause and server.cause.reason in FAULTS else None
            said, at = self._said.get(server.name, (None, float("-inf")))
            reason = None if cause is None else cause.reason
            if reason == said or now < at + QUIET_SECONDS:
                continue
            self._said[server.name] = reason, now
            _log_change(server.name, cause)
        for name in self._said.keys() - {server.name for server in servers}:
            del self._said[name]


def _log_change(name: str, cause: Cause | None) -> None:
    if cause is None:
        _log.info("server %s takes calls again", name)
    elif cause.reason is Reason.SERVER_SILENT:
        _log.warning("server %s does not answer: %s", name, cause.message)
    else:
        _log.warning("server %s takes no calls: %s", name, unquoted(cause, name))
