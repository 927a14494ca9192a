"""Runs the stage: one Faust app for all models of a process (`models.py`)."""

import asyncio
import functools
import logging
import time
from typing import Final

from tidemill import metrics
from tidemill.configuration.security import Kafka
from tidemill.configuration.servers import Serving
from tidemill.configuration.settings import Settings
from tidemill.faust import stage_app, stage_runner
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.follower import Follower
from tidemill.kafka.log_space import log_space
from tidemill.kafka.offsets import Offsets
from tidemill.kafka.producer import Log, partition_of
from tidemill.processors.awake_model import Configured, Shared
from tidemill.processors.backends.servers import Servers
from tidemill.processors.calls.forms import Forms
from tidemill.processors.http.client import HttpUpstream
from tidemill.processors.kafka import KafkaOutbox
from tidemill.processors.member import Member
from tidemill.processors.memory_budget import LineBudget
from tidemill.processors.models import Models
from tidemill.processors.partitions.assignment import Assignment
from tidemill.processors.partitions.closed_batches import ClosedBatches, batch_state
from tidemill.processors.partitions.completed_lines import CompletedLines
from tidemill.processors.partitions.places import Places
from tidemill.processors.recovery import Recovery
from tidemill.processors.reports.reporter import Reporter
from tidemill.retrying import retry
from tidemill.runtime import preflight
from tidemill.schemas.log import topics
from tidemill.sealing.key_manager import KeyManager
from tidemill.storage.disk_space import LOG
from tidemill.tasks import watched

NAME: Final = "tidemill-processors"
REST_SECONDS: Final = 0.1
"""How long a cancel may wait while many batches change."""
RECENT_SECONDS: Final = topics.LINES_SECONDS + 86_400
"""Processors read the batches that have changed since then. No window is longer than `LINES_SECONDS`, so the
deadline of each older batch has passed, and no line is called after its deadline. A day more, as clocks differ."""

_log = logging.getLogger(__name__)


class Processors:
    """The models of a process, and the services that they share."""

    def __init__(self, settings: Settings, kafka: Kafka, catalog: Catalog) -> None:
        """Set up the app; nothing is connected yet. Needs a running event loop."""
        self._settings = settings
        self._catalog = catalog
        self._closed = closed = ClosedBatches(grace_seconds=settings.grace_seconds)
        self._space = log_space(kafka, settings.disk_reserve_bytes)
        self._follower = Follower(kafka, topics.BATCHES.name, self._apply, rest_seconds=REST_SECONDS)
        self._offsets = Offsets(kafka)
        log = Log(kafka)
        self._key_manager = KeyManager(settings, kafka, log, on_record=self._erased)
        self.store = self._key_manager.open_store()
        completed = CompletedLines()
        closed.listen(completed.forget)
        assignment = Assignment(closed, functools.partial(partition_of, partitions=settings.partitions))
        self._shared = Shared(
            kafka=kafka,
            log=log,
            outbox=KafkaOutbox(kafka, encrypted=settings.encrypt_log, check_disk=lambda: self._space.check(LOG)),
            upstream=HttpUpstream(reply_bytes_max=settings.reply_bytes_max),
            store=self.store,
            # Two budgets: a line keeps its bytes while it waits for those of its form, so one could deadlock.
            forms=Forms(self.store, LineBudget()),
            budget=LineBudget(),
            closed=closed,
            vault=self._key_manager.vault,
            assignment=assignment,
            recovery=Recovery(kafka, assignment, completed.mark, closed),
            completed=completed,
        )
        state = settings.data / "state" / "processors"
        self._app = stage_app.create_app(NAME, settings, kafka=kafka, state=state)
        self._app.stop_seconds = settings.stop_seconds
        self._models = Models(self._app, self._shared, Places(self._offsets, NAME, settings.partitions))
        self._servers = Servers(
            time.time, asyncio.get_running_loop().time, client=self._shared.upstream,
            weights={project: own.weight for project, own in settings.projects.items()},
        )  # fmt: skip
        self._member: Member | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._lacks: set[str] = set()
        """Keys and files of servers that the process lacks."""

    async def start(self) -> list[stage_app.StageApp]:
        """Connect, learn which batches are closed, and return the app to run."""
        self._member = Member(self._app, self._models, self._shared, self._settings.partitions)
        self.set_models(self._catalog.contents.serving)
        self._catalog.listen(lambda: self.set_models(self._catalog.contents.serving))
        await self._space.start()
        await self._shared.outbox.start()
        self._follower.position = await retry("looking for the recent batches", self._first_recent)
        await self._follower.start()
        await self._key_manager.start()
        await self._follower.caught_up()
        reporting = _report(self._shared.kafka, self._servers, self._models)
        self._reporting = watched(asyncio.create_task(reporting), self._app.crash)
        self._servers.show(lambda: self._catalog.contents.serving.models)
        metrics.HELD.sample(self._models.held)
        return [self._app]

    def set_models(self, serving: Serving) -> None:
        """Work for these models and servers from now on, without a rebalance."""
        lacks = {str(lack) for lack in preflight.lacking(serving)}
        for lack in sorted(lacks - self._lacks):
            _log.warning("%s", lack)
        self._lacks = lacks
        self._servers.apply(serving)
        models = {name: Configured(model, self._servers.pools[name]) for name, model in serving.models.items()}
        self._models.configure(models)

    async def stop(self) -> None:
        """Disconnect."""
        await self._space.stop()
        await self._follower.stop()
        await self._key_manager.stop()
        await self._offsets.close()
        if self._reporting is not None:
            self._reporting.cancel()
            await asyncio.wait([self._reporting])
        await self._servers.close()
        if self._member is not None:
            self._member.close()
        await self._models.close()
        await self._shared.upstream.close()
        await self._shared.outbox.stop()
        await self._shared.log.stop()
        await self.store.close()

    async def _first_recent(self) -> int:
        """The offset of the first batch to read: there may be millions of older ones.

        Raises:
            LogUnavailable: The leader of the topic does not answer.
        """
        place = self._follower.partition
        found = await self._offsets.since([place], time.time() - RECENT_SECONDS)
        if place not in found:
            raise LogUnavailable("its leader does not answer")
        return found[place]

    def _apply(self, key: str, value: bytes | None, offset: int) -> None:
        if value is None:
            # A deleted batch had ended, but this process may not have read all its lines yet.
            self._closed.close(key)
            return
        if (batch := batch_state(value)) is None:
            _log.warning("the record of a batch at %d cannot be read", offset)
            return
        self._closed.apply(batch.id, batch.status)
        if batch.id not in self._closed:
            self._models.opened(batch.id, batch.models)

    def _erased(self, key: str, value: bytes | None) -> None:
        """Close an erased batch: `tidemill.batches` drops its tombstone before its lines have left the log."""
        if "/" in key:
            return
        if value is None:
            self._closed.forget(key)
        else:
            self._closed.close(key)


async def _report(kafka: Kafka, servers: Servers, models: Models) -> None:
    """Report the load of servers until cancelled."""
    # A producer of its own: a failed report must not fail results, too (`kafka/producer.py`).
    log = Log(kafka)
    reporter = Reporter(
        servers,
        lambda: [(model.name, model.dispatcher) for model in models.at_work],
        functools.partial(log.send, topics.SERVERS.name),
        clock=time.time, monotonic=asyncio.get_running_loop().time,
    )  # fmt: skip
    try:
        await reporter.run()
    finally:
        await log.stop()


def main(settings: Settings) -> None:
    """Run the stage until SIGTERM."""
    stage_runner.run(settings, "processors", Processors)
