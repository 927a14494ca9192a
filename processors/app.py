"""Runs the stage: one Faust app for each model (`model_app.py`), several in one process."""

import asyncio
import functools
import logging
import time
from collections.abc import Iterable
from typing import Final

from tidemill import metrics
from tidemill.configuration.security import Kafka
from tidemill.configuration.settings import Settings
from tidemill.faust import stage_app, stage_runner
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.follower import Follower
from tidemill.kafka.log_space import log_space
from tidemill.kafka.producer import Log
from tidemill.processors.backends.servers import Servers
from tidemill.processors.calls.forms import Forms
from tidemill.processors.http.client import HttpUpstream
from tidemill.processors.kafka import KafkaOutbox
from tidemill.processors.memory_budget import LineBudget
from tidemill.processors.model_app import ModelApp, Shared
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.runtime import preflight
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.ports import Store
from tidemill.sealing.key_manager import KeyManager
from tidemill.storage.address import open_store
from tidemill.storage.disk_space import LOG

STOP_DRAIN_SECONDS_MAX: Final = 7.0
"""Less than the process is given to stop."""

_log = logging.getLogger(__name__)


class Processors:
    """The models of a process, and what they share."""

    def __init__(
        self, settings: Settings, kafka: Kafka, catalog: Catalog, models: Iterable[str] | None = None
    ) -> None:
        """Connect nothing before `start()`."""
        self._settings = settings
        self._kafka = kafka
        self._catalog = catalog
        serving = self._serving = catalog.contents.serving
        self._names = [name for name in serving.models if models is None or name in models]
        self._closed = ClosedBatches()
        self._space = log_space(kafka, settings.disk_reserve_bytes)
        self._follower = Follower(kafka, topics.BATCHES.name, self._apply)
        self._log = Log(kafka)
        self._key_manager = KeyManager(settings, kafka, self._log, on_record=self._erased)
        self._shared: Shared | None = None
        self._models: list[ModelApp] = []
        self._servers: Servers | None = None
        self._stopping_until: float | None = None

    @property
    def store(self) -> Store:
        """The store of large lines, once started."""
        assert self._shared is not None
        return self._shared.store

    async def start(self) -> list[stage_app.StageApp]:
        """Connect, learn which batches are closed, and return the apps to run."""
        store = self._key_manager.store(
            open_store(self._settings.store_url, reserve_bytes=self._settings.disk_reserve_bytes)
        )
        shared = self._shared = Shared(
            kafka=self._kafka,
            log=self._log,
            outbox=KafkaOutbox(
                self._kafka, encrypted=self._settings.encrypt_log, check_disk=lambda: self._space.check(LOG)
            ),
            upstream=HttpUpstream(reply_bytes_max=self._settings.reply_bytes_max),
            store=store,
            closed=self._closed,
            budget=LineBudget(),
            forms=Forms(store, LineBudget()),
            vault=self._key_manager.vault,
        )
        await self._space.start()
        await shared.outbox.start()
        await self._follower.start()
        await self._key_manager.start()
        await self._follower.caught_up()
        serving = self._serving
        for lack in preflight.lacking(serving):
            _log.warning("%s", lack)
        servers = self._servers = Servers(
            time.time, asyncio.get_running_loop().time, client=shared.upstream,
            weights={project: own.weight for project, own in self._settings.projects.items()},
        )  # fmt: skip
        servers.apply(serving, self._names)
        self._models = [
            ModelApp(
                name, self._settings, serving.models[name], shared, pool=servers.pools[name],
                stop_seconds=self._stop_seconds,
            )
            for name in self._names
        ]  # fmt: skip
        self._catalog.listen(lambda: servers.apply(self._catalog.contents.serving, self._names))
        self._show(servers)
        return [model.app for model in self._models]

    def _show(self, servers: Servers) -> None:
        """Give the metrics their sources."""
        now = asyncio.get_running_loop().time
        metrics.sample(metrics.SERVER_IN_FLIGHT, lambda: {server.name: server.in_flight for server in servers})
        metrics.sample(metrics.SERVER_LIMIT, lambda: {server.name: server.found(now()) for server in servers})
        metrics.sample(metrics.MODEL_SERVERS, lambda: {name: pool.well for name, pool in servers.pools.items()})
        metrics.sample(metrics.IN_FLIGHT, lambda: {model.name: model.dispatcher.busy for model in self._models})
        metrics.sample(metrics.HELD, lambda: {model.name: len(model.held_records) for model in self._models})

    async def stop(self) -> None:
        """Disconnect."""
        await self._space.stop()
        await self._follower.stop()
        await self._key_manager.stop()
        if self._servers is not None:
            await self._servers.close()
        for model in self._models:
            await model.close()
        if self._shared is not None:
            await self._shared.upstream.close()
            await self._shared.outbox.stop()
            await self._shared.log.stop()
            await self._shared.store.close()

    def _stop_seconds(self) -> float:
        """The models are drained one after the other: they share one bound, and all halt at the first call."""
        now = asyncio.get_running_loop().time()
        if self._stopping_until is None:
            self._stopping_until = now + STOP_DRAIN_SECONDS_MAX
            for model in self._models:
                model.dispatcher.halt()
        return max(0.0, self._stopping_until - now)

    def _apply(self, key: str, value: bytes | None, offset: int) -> None:
        if value is None:
            # A deleted batch was over; its lines may still be ahead in the log.
            self._closed.close(key)
            return
        try:
            self._closed.apply(codec.decode_batch(value))
        except DecodeError as error:
            _log.warning("the record of a batch at %d cannot be read: %s", offset, error)

    def _erased(self, key: str, value: bytes | None) -> None:
        """Close an erased batch: `tidemill.batches` drops its tombstone before its lines have left the log."""
        if value is not None and "/" not in key:
            self._closed.close(key)


def main(settings: Settings, models: list[str] | None = None) -> None:
    """Run the stage until SIGTERM.

    Args:
        settings: All settings.
        models: Names of the models to work for; without it all.
    """
    stage_runner.run(settings, "processors", functools.partial(Processors, models=models))
