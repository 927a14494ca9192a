"""The app of results: each partition of `commands` and `outcomes` has an owner, with two tables of its batches."""

import asyncio
import functools
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from typing import Final

from tidemill.configuration.security import Kafka
from tidemill.configuration.settings import Settings
from tidemill.faust import stage_app, stage_runner
from tidemill.faust.partitions import OwnedPartitions
from tidemill.faust.tables import PartitionTable, declare_table
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.freeze_guard import FreezeGuard
from tidemill.kafka.history import reading
from tidemill.kafka.partitions.owner import PartitionOwners
from tidemill.kafka.producer import Log, partition_of
from tidemill.results.partition import Partition
from tidemill.results.record_handler import BOUNDS, RecordHandler
from tidemill.results.resources import FileRules, Limits, Owner, Resources
from tidemill.results.state import batch_gauges
from tidemill.results.state.active_batches import ActiveBatches
from tidemill.results.state.backlog import Backlog
from tidemill.results.state.stalls import held
from tidemill.results.state.tables import Tables
from tidemill.runtime.clocks import DeletionClock, session_clock
from tidemill.schemas.log import topics
from tidemill.schemas.log.codec import DecodeError, Headers
from tidemill.schemas.ports import Edge
from tidemill.schemas.resources.batch import window_seconds
from tidemill.sealing.key_manager import KeyManager
from tidemill.sealing.records import open_outcome
from tidemill.sealing.vault import NoKey, Vault
from tidemill.storage.buckets import Buckets
from tidemill.tasks import watched

NAME: Final = "tidemill-results"
SHARING_BATCHES: Final = 4
"""With this many batches at work or more, they share requests to the broker."""
REST_SECONDS: Final = 0.015
BUFFER_EVENTS_MAX: Final = 8
"""Records that Faust holds for each partition: it counts no bytes, as the queues of the owners do
(`record_handler.BOUNDS`), and a record of large answers has more than 64 KiB."""
COMPACTIONS_MAX: Final = 4
"""Batches of one process that are compacted at once."""
TABLE_CACHE_BYTES: Final = 4 << 20
"""Cache of each partition of a table. States are rewritten for each part and each publication: this bounds how
many copies of them are in memory."""
CLOCK_SECONDS_MAX: Final = 3600.0
"""The largest difference between the clocks of the processes that write to the log."""
WRITER_BYTES: Final = 4
"""Length of the token that distinguishes the owners of a partition."""


class Results:
    """The stage's app, its connections and its store."""

    def __init__(self, settings: Settings, kafka: Kafka, catalog: Catalog) -> None:
        """Set up the app; nothing is connected yet."""
        self._settings = settings
        self._catalog = catalog
        self._freeze_guard = FreezeGuard(clock=session_clock(kafka))
        self._log = Log(kafka, before_request=self._wait_valid, rest=self._rest)
        self._key_manager = KeyManager(settings, kafka, self._log)
        self.store = self._key_manager.open_store()
        state = settings.data / "state" / "results"
        self.app = stage_app.create_app(
            NAME, settings, kafka=kafka, state=state, tables=True, buffer=BUFFER_EVENTS_MAX
        )
        self._tables = [
            declare_table(self.app, name, settings.partitions, cache_bytes=TABLE_CACHE_BYTES)
            for name in ("batches", "lines")
        ]
        self._owners = PartitionOwners(self._handler, BOUNDS, crash=self.app.crash)
        self._resources = Resources(
            sender=self._log,
            history=functools.partial(outcomes, kafka, self._key_manager.vault),
            store=self.store,
            clock=time.time,
            monotonic=time.monotonic,
            limits=self._limits(),
            compactions=asyncio.Semaphore(COMPACTIONS_MAX),
            buckets=Buckets(settings.buckets),
            wake=self._owners.wake,
        )
        self._partitions = settings.partitions
        self._tasks: list[asyncio.Task[None]] = []
        self._owned = OwnedPartitions(
            self.app,
            self._owners,
            topics.COMMANDS.name,
            topics.OUTCOMES.name,
            before_request=self._wait_valid,
            rest=self._rest,
        )

    def _limits(self) -> Limits:
        settings, catalog = self._settings, self._catalog
        return Limits(
            files=FileRules(
                part_bytes=settings.part_bytes,
                tariff_of=lambda model, window: settings.tariff(catalog.contents.price_of(model), window),
                bill_copies=settings.bill_copies,
                input_lines_max=settings.file_lines_max,
                input_bytes_max=settings.file_bytes_max,
            ),
            partitions=lambda: max(1, len(self._owners.works)),
            part_age_seconds=settings.part_age_seconds,
            grace_seconds=settings.grace_seconds,
            output_life_seconds=settings.output_life_seconds,
            why_uncalled=lambda model: held(catalog.contents, model),
            revision=lambda: catalog.contents.revision,
            retention_seconds=lambda: self.app.retention.shortest,
            kept_seconds=self._kept_seconds,
        )

    async def start(self) -> list[stage_app.StageApp]:
        """Connect, and return the app to run."""
        self._freeze_guard.start()
        await self._log.start()
        await self._key_manager.start()
        destroying = self._key_manager.destroy_due_keys(
            DeletionClock(time.time), self._kept_seconds, self._is_over
        )
        self._tasks = [
            watched(asyncio.create_task(self._owners.run_timers()), self.app.crash),
            watched(asyncio.create_task(destroying, name="destroy keys"), self.app.crash),
        ]
        batch_gauges.register(self._active_batches, time.time, time.monotonic)
        self._resources.metrics.register(lambda: self._catalog.contents.serving.models)
        Backlog(self._active_batches, self._called_models, time.time).register()
        return [self.app]

    async def stop(self) -> None:
        """Disconnect."""
        for task in self._tasks:
            task.cancel()
        await self._key_manager.stop()
        await self._log.stop()
        await self._resources.buckets.close()
        await self.store.close()
        self._freeze_guard.stop()

    def _active_batches(self) -> Iterator[ActiveBatches]:
        for handler in self._owners.works:
            yield handler.partition.active_batches

    def _kept_seconds(self) -> float:
        """The longest time that the log keeps a record of a batch, or a batch may run."""
        return max(self.app.retention.longest, *map(window_seconds, self._settings.windows))

    def _is_over(self, batch_id: str) -> bool:
        """Whether a batch of this process's partitions is over or unknown."""
        owned = list(self._active_batches())
        number = partition_of(batch_id, self._partitions)
        return any(active.number == number for active in owned) and not any(
            active.is_open(batch_id) for active in owned
        )

    def _called_models(self) -> list[str]:
        models = self._catalog.contents.serving.models
        return [name for name, model in models.items() if not model.paused]

    async def _rest(self) -> None:
        """Let several batches at work share requests to the broker."""
        if sum(map(len, self._active_batches())) >= SHARING_BATCHES:
            await asyncio.sleep(REST_SECONDS)

    async def _wait_valid(self) -> None:
        """Return once this process is certainly the owner of its partitions; see `Owner`."""
        await self.app.membership.wait_valid()
        self._freeze_guard.check()

    def _handler(self, number: int) -> RecordHandler:
        partition = Partition(
            number,
            tables=Tables(*(PartitionTable(table, number) for table in self._tables)),
            resources=self._resources,
            owner=Owner(
                writer=secrets.token_hex(WRITER_BYTES),
                generation=self.app.consumer_generation_id,
                confirm=self._wait_valid,
            ),
        )
        return RecordHandler(
            partition, resources=self._resources, vault=self._key_manager.vault, partitions=self._partitions
        )


async def outcomes(
    kafka: Kafka, vault: Vault, partition: int, since: float
) -> AsyncGenerator[tuple[Headers, bytes], None]:
    """See `resources.Outcomes`."""
    at_ms = max(0, int((since - CLOCK_SECONDS_MAX) * 1000))
    async with (
        reading(kafka) as reader,
        aclosing(reader.records(topics.OUTCOMES.name, {partition: Edge(at_ms=at_ms)})) as records,
    ):
        async for record in records:
            with suppress(NoKey, DecodeError):
                yield await open_outcome(vault, record.headers, record.value or b"")


def main(settings: Settings) -> None:
    """Run the stage until SIGTERM."""
    stage_runner.run(settings, "results", Results)
