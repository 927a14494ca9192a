"""The apps of a process as they are watched: by its pulse, `/readyz`, the metrics and the guard of retention."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from tidemill import metrics
from tidemill.faust.probe import Probe
from tidemill.faust.retention_guard import LOOK_SECONDS, RetentionGuard
from tidemill.runtime.health import Unwell
from tidemill.runtime.watchdog import Watch

log = logging.getLogger(__name__)


class App(Protocol):
    """What is needed of an app beyond what Faust has; see `stage_app.StageApp`."""

    conf: Any
    kept_seconds: float
    oldest: Callable[[], float | None] | None


class MonitoredApps:
    """The apps of a process; there are none before `add`."""

    def __init__(self) -> None:
        self._apps: list[tuple[str, App, Probe, Watch]] = []
        self._waiting: list[str] = []

    def add(self, apps: Sequence[App]) -> None:
        """Watch these; they are not started yet."""
        for app in apps:
            vitals = Probe(app)
            vitals.start()
            self._apps.append((app.conf.id, app, vitals, Watch()))

    def look(self, seconds: float) -> str | None:
        """What is wrong with one of them for too long, `seconds` after the last look."""
        for name, _, vitals, watch in self._apps:
            if (symptom := watch.look(vitals.marks(), seconds)) is not None:
                return f"{name}: {symptom}"
        return None

    async def assigned(self) -> None:
        """Return where all of them have their place in their group and their tables.

        Raises:
            Unwell: One has not. An app's name has a model's name in it, so only the log says which one it is.
        """
        if not self._apps:
            raise Unwell("not started yet")
        waiting = [name for name, _, vitals, _ in self._apps if not vitals.is_assigned]
        if waiting != self._waiting:
            log.info("without an assignment or its tables: %s", ", ".join(waiting) or "none")
            self._waiting = waiting
        if waiting:
            raise Unwell(f"{len(waiting)} of {len(self._apps)} consumers without an assignment or its tables")

    async def guard(self, ask: Callable[[], Awaitable[float]]) -> None:
        """Watch over the retention of what the apps still need, until the task is cancelled.

        Args:
            ask: Asks the broker how long it keeps that, in seconds.
        """
        guard = RetentionGuard(ask, {name: app.oldest for name, app, _, _ in self._apps if app.oldest is not None})
        metrics.ask(metrics.LAG, guard.ages)
        while True:
            await guard.look()
            for _, app, _, _ in self._apps:
                app.kept_seconds = guard.kept_seconds
            await asyncio.sleep(LOOK_SECONDS)
