"""The app of webhooks: each partition of `tidemill.events` has an owner, which delivers to its endpoints."""

import asyncio
import time
from typing import Final

from tidemill import metrics
from tidemill.configuration.security import Kafka
from tidemill.configuration.settings import Settings
from tidemill.faust import stage_app, stage_runner
from tidemill.faust.partitions import OwnedPartitions
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.connection import TRANSIENT
from tidemill.kafka.follower import Follower
from tidemill.kafka.partitions.owner import PartitionOwners
from tidemill.kafka.producer import Log, partition_of
from tidemill.retrying import retry
from tidemill.schemas.log import topics
from tidemill.schemas.webhooks.addresses import networks
from tidemill.schemas.webhooks.table import Deliveries, Endpoints, is_disabled
from tidemill.sealing.key_manager import wrapper
from tidemill.sealing.webhook_secrets import WebhookSecrets
from tidemill.tasks import Crash, watched
from tidemill.webhooks.http import Client
from tidemill.webhooks.partition import BOUNDS, Partition, Resources
from tidemill.webhooks.router import Router
from tidemill.webhooks.schedule import Slots

NAME: Final = "tidemill-webhooks"
ROUTER: Final = 0
"""The owner of this partition also creates the events."""


class RoutingPartition(Partition):
    """The first partition, whose owner creates the events for all partitions."""

    def __init__(self, number: int, resources: Resources, kafka: Kafka, crash: Crash) -> None:
        super().__init__(number, resources)
        self._kafka = kafka
        self._crash = crash
        self._routing: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """See `Partition`; also continues the previous owner's events."""
        await super().load()
        self._routing = watched(asyncio.create_task(self._route(), name="route events"), self._crash)

    def abandon(self) -> None:
        """See `Partition`."""
        if self._routing is not None:
            self._routing.cancel()
        super().abandon()

    async def _route(self) -> None:
        found = self._resources
        router = Router(
            self._kafka, found.sender, found.endpoints,
            catch_up=found.catch_up, clock=found.clock, cursor=found.stored.cursor,
        )  # fmt: skip
        await router.run()


class Webhooks:
    """The stage's app and its connections."""

    store = None

    def __init__(self, settings: Settings, kafka: Kafka, catalog: Catalog) -> None:
        """Set up the app; nothing is connected yet."""
        del catalog
        self._kafka = kafka
        state = settings.data / "state" / "webhooks"
        self.app = stage_app.create_app(NAME, settings, kafka=kafka, state=state)
        self._log = Log(kafka, before_request=self.app.membership.wait_valid)
        self._client = Client(networks(settings.webhook_allow))
        self._endpoints, self._stored = Endpoints(), Deliveries()
        self._followers = (
            Follower(kafka, topics.WEBHOOKS.name, self._endpoints.apply),
            Follower(kafka, topics.DELIVERIES.name, self._stored.apply),
        )
        self._owners = PartitionOwners(self._partition, BOUNDS, crash=self.app.crash)
        self._owned = OwnedPartitions(self.app, self._owners, topics.EVENTS.name)
        self._resources = Resources(
            sender=self._log,
            caller=self._client,
            secrets=WebhookSecrets(wrapper(settings)),
            endpoints=self._endpoints,
            stored=self._stored,
            catch_up=self._catch_up,
            partition_of=lambda endpoint_id: partition_of(endpoint_id, settings.partitions),
            wake=self._owners.wake,
            clock=time.time,
            monotonic=time.monotonic,
            slots=Slots(),
        )
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> list[stage_app.StageApp]:
        """Connect, and return the app to run."""
        await self._client.start()
        await self._log.start()
        for follower in self._followers:
            await follower.start()
        for follower in self._followers:
            await follower.caught_up()
        self._running = watched(asyncio.create_task(self._owners.run_timers()), self.app.crash)
        self._register()
        return [self.app]

    async def stop(self) -> None:
        """Disconnect."""
        if self._running is not None:
            self._running.cancel()
        for follower in self._followers:
            await follower.stop()
        await self._log.stop()
        await self._client.stop()

    def _partition(self, number: int) -> Partition:
        if number == ROUTER:
            return RoutingPartition(number, self._resources, self._kafka, self.app.crash)
        return Partition(number, self._resources)

    async def _catch_up(self) -> None:
        for follower in self._followers:
            await retry("catching up with the webhooks", follower.catch_up, faults=TRANSIENT)

    def _register(self) -> None:
        """Register the sources of the gauges."""

        def deliveries() -> dict[str, float]:
            owned = self._owners.works
            return {
                "waiting": sum(each.waiting for each in owned),
                "in_flight": sum(each.in_flight for each in owned),
            }

        def oldest() -> dict[str, float]:
            times = [each.oldest for each in self._owners.works]
            first = min((at for at in times if at is not None), default=None)
            return {"waiting": 0.0 if first is None else max(0.0, time.time() - first)}

        def endpoints() -> dict[str, float]:
            failed = [is_disabled(*each) for owned in self._owners.works for each in owned.failed()]
            return {"failing": failed.count(False), "disabled": failed.count(True)}

        metrics.WEBHOOK_DELIVERIES.sample(deliveries)
        metrics.WEBHOOK_OLDEST.sample(oldest)
        metrics.WEBHOOK_ENDPOINTS.sample(endpoints)


def main(settings: Settings) -> None:
    """Run the stage until SIGTERM."""
    stage_runner.run(settings, "webhooks", Webhooks)
