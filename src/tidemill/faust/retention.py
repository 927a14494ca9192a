"""Warns before the log's retention removes records that a consumer or a batch still needs."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from tidemill.kafka.admin import Retention
from tidemill.schemas.log.retention import is_at_risk
from tidemill.schemas.ports import Clock, Monotonic

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 60.0
"""Time between two looks at the consumers."""
WARN_SECONDS: Final = 3600.0
"""Time between two warnings about the same consumer."""

Oldest = Callable[[], float | None]
"""Returns when a consumer's oldest unfinished record was written, Unix seconds; None without one."""


class RetentionGuard:
    """Watches how far the consumers of a process are behind, by each one's oldest unfinished record.

    `ask` returns the retention of the needed records; `clock` is Unix time, which records have, too.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[Retention]],
        consumers: Mapping[str, Oldest],
        clock: Clock = time.time,
        *,
        monotonic: Monotonic = time.monotonic,
    ) -> None:
        self.retention = Retention()
        """The retention of the needed records; infinite until the broker has answered."""
        self._ask = ask
        self._consumers = consumers
        self._clock = clock
        self._monotonic = monotonic
        self._warned: dict[str, float] = {}

    async def look(self) -> list[str]:
        """Return the consumers at risk; once per `WARN_SECONDS`, warn of each, and of topics cut by size."""
        try:
            self.retention = await self._ask()
        except OSError as error:
            # The last known time is still the best guess.
            log.info("the broker does not return the retention: %s", type(error).__name__)
        found_ages = ages(self._consumers, self._clock())
        found = [name for name, age in found_ages.items() if is_at_risk(age, self.retention.shortest)]
        for name in self.retention.by_size:
            if self._is_news(name):
                log.warning(
                    "The broker removes records of %s by size, also those of lines that have not run: set its"
                    " retention.bytes=-1.", name,
                )  # fmt: skip
        for name in found:
            if self._is_news(name):
                log.warning(
                    "%s is %.1f h behind, and the log keeps its records for %.1f h; records that it has not"
                    " processed by then are lost. Raise retention.ms of the topics, and find out why it is slow.",
                    name, found_ages[name] / 3600, self.retention.shortest / 3600,
                )  # fmt: skip
        return found

    def _is_news(self, name: str) -> bool:
        """Whether a warning about a name is due, which counts as given."""
        now = self._monotonic()
        if is_due := now - self._warned.get(name, float("-inf")) >= WARN_SECONDS:
            self._warned[name] = now
        return is_due


def ages(consumers: Mapping[str, Oldest], now: float) -> dict[str, float]:
    """The age of each consumer's oldest unfinished record, in seconds."""
    times = ((name, oldest()) for name, oldest in consumers.items())
    return {name: 0.0 if at is None else max(0.0, now - at) for name, at in times}
