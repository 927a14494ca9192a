"""The guard of retention: tells in time that a consumer is so far behind that the log may drop what it needs."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from tidemill.faust import retention

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 60.0
"""How often one should look."""
WARN_SECONDS: Final = 3600.0
"""Between two warnings about the same consumer."""

Oldest = Callable[[], float | None]
"""When the oldest record was written that a consumer has not done with, Unix seconds; None where there is none."""


class RetentionGuard:
    """Watches the consumers of a process.

    Args:
        ask: Asks the broker how long it keeps what is needed, in seconds.
        consumers: The oldest record of each, by the consumer's name.
        clock: Unix time.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[float]],
        consumers: Mapping[str, Oldest],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.kept_seconds = float("inf")
        """How long the log keeps what is needed; until the broker has answered, for good."""
        self._ask = ask
        self._consumers = consumers
        self._clock = clock
        self._warned: dict[str, float] = {}

    async def look(self) -> list[str]:
        """Look once; gives those that are in danger, and warns of each from time to time."""
        try:
            self.kept_seconds = await self._ask()
        except OSError as error:
            # What was known before is still the best guess.
            log.info("the log does not tell how long it keeps its records: %s", type(error).__name__)
        now = self._clock()
        found = [name for name, age in self.ages().items() if retention.is_at_risk(age, self.kept_seconds)]
        for name in found:
            if now - self._warned.get(name, float("-inf")) >= WARN_SECONDS:
                self._warned[name] = now
                log.warning(
                    "%s is %.1f h behind, and the log keeps its records for %.1f h: what it has not done by then"
                    " is lost. Raise retention.ms of the topics, and find out what holds it up.",
                    name, self.ages()[name] / 3600, self.kept_seconds / 3600,
                )  # fmt: skip
        return found

    def ages(self) -> dict[str, float]:
        """How far each consumer is behind, in seconds: the age of its oldest record that is not done."""
        now = self._clock()
        times = ((name, oldest()) for name, oldest in self._consumers.items())
        return {name: 0.0 if at is None else max(0.0, now - at) for name, at in times}
