"""The apps of a process, for the heartbeat, `/readyz`, the metrics and the retention guard."""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from tidemill import metrics
from tidemill.faust.probe import Probe
from tidemill.faust.retention import LOOK_SECONDS, RetentionGuard, ages
from tidemill.faust.stage_app import StageApp
from tidemill.kafka.admin import Retention
from tidemill.runtime.health import Unhealthy
from tidemill.runtime.watchdog import Watch

log = logging.getLogger(__name__)


class MonitoredApps:
    """The apps of a process; empty before `add`."""

    def __init__(self) -> None:
        self._apps: list[tuple[str, StageApp, Probe, Watch]] = []
        self._waiting: list[str] = []

    def add(self, apps: Sequence[StageApp]) -> None:
        """Monitor these apps, which have not started yet."""
        for app in apps:
            probe = Probe(app)
            probe.start()
            self._apps.append((app.conf.id, app, probe, Watch()))
        probes = {name: probe for name, _, probe, _ in self._apps}
        metrics.LAG_RECORDS.sample(
            lambda: {(name, topic): lag for name, probe in probes.items() for topic, lag in probe.lag().items()}
        )
        metrics.FETCHED_RECORDS.sample(lambda: {name: probe.fetched_records for name, probe in probes.items()})
        metrics.FETCHED_BYTES.sample(lambda: {name: probe.fetched_bytes for name, probe in probes.items()})
        metrics.REBALANCES.sample(lambda: {name: probe.rebalances for name, probe in probes.items()})

    def look(self, seconds: float) -> str | None:
        """Return an app's symptom that has lasted too long; `seconds` have passed since the last look."""
        for name, _, probe, watch in self._apps:
            if (symptom := watch.look(probe.marks(), seconds)) is not None:
                return f"{name}: {symptom}"
        return None

    def fetched_records(self) -> int:
        """Records that the apps have fetched, those of their tables included."""
        return sum(probe.fetched_records for _, _, probe, _ in self._apps)

    async def check_assigned(self) -> None:
        """Return if every app has joined its group and recovered its tables.

        Raises:
            Unhealthy: An app has not; only the log names it.
        """
        if not self._apps:
            raise Unhealthy("not started yet")
        waiting = [name for name, _, probe, _ in self._apps if not probe.is_assigned]
        if waiting != self._waiting:
            log.info("without an assignment or its tables: %s", ", ".join(waiting) or "none")
            self._waiting = waiting
        if waiting:
            raise Unhealthy(f"{len(waiting)} of {len(self._apps)} consumers without an assignment or its tables")

    async def guard_retention(self, ask: Callable[[], Awaitable[Retention]]) -> None:
        """Run the retention guard until the task is cancelled; `ask` returns the retention of the log."""
        oldest, behind = {}, {}
        for name, app, _, _ in self._apps:
            if app.oldest is not None:
                oldest[name] = functools.partial(app.oldest_of, app.oldest)
                behind[name] = functools.partial(app.oldest_of, app.behind or app.oldest)
        guard = RetentionGuard(ask, oldest)
        metrics.LAG.sample(lambda: ages(behind, time.time()))
        while True:
            await guard.look()
            for _, app, _, _ in self._apps:
                app.retention = guard.retention
            await asyncio.sleep(LOOK_SECONDS)
