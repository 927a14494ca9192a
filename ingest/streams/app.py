"""The app of direct producers: each partition of `tidemill.intake` has an owner, with a table of its streams."""

import asyncio
import functools
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tidemill.configuration import signing_keys
from tidemill.configuration.security import Kafka
from tidemill.configuration.settings import Settings
from tidemill.faust import stage_app
from tidemill.faust.partitions import OwnedPartitions
from tidemill.faust.tables import PartitionTable, declare_table
from tidemill.ingest.files.validation import Rules
from tidemill.ingest.kafka import RequestProducer
from tidemill.ingest.quota import Quotas
from tidemill.ingest.sqlite import Sizes
from tidemill.ingest.streams.assembly import InputAssembly
from tidemill.ingest.streams.factory import NO_BOUND, StreamFactory
from tidemill.ingest.streams.keyring import Keyring
from tidemill.ingest.streams.partition import Partition
from tidemill.ingest.streams.publisher import Publisher
from tidemill.ingest.streams.record_handler import BOUNDS, Cancels, RecordHandler
from tidemill.ingest.streams.stream import BufferedBytes, Resources, Times
from tidemill.ingest.streams.tables import Streams
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.connection import topic_identities
from tidemill.kafka.follower import Follower, start_together
from tidemill.kafka.partitions.owner import PartitionOwners
from tidemill.kafka.producer import Log
from tidemill.retrying import retry
from tidemill.schemas.log import intake, topics
from tidemill.schemas.ports import Store
from tidemill.schemas.resources.batch import Cut
from tidemill.sealing.vault import Vault
from tidemill.tasks import watched

NAME: Final = "tidemill-intake"
TABLE_CACHE_BYTES: Final = 8 << 20
WRITER_BYTES: Final = 4
REST_SECONDS: Final = 0.1
"""How long the quotas may lag behind while many batches end."""
BUFFER_EVENTS_MAX: Final = 16
"""Records of a partition in Faust's buffer: a record of a producer has up to 1 MiB, of other topics 64 KiB."""


class StreamApp:
    """The app, and the followers of keys, batches and files."""

    def __init__(
        self,
        settings: Settings,
        kafka: Kafka,
        *,
        catalog: Catalog,
        sender: Log,
        store: Store,
        requests: RequestProducer,
        vault: Vault,
    ) -> None:
        """Set up the app without connecting."""
        state = settings.data / "state" / "intake"
        self.app = stage_app.create_app(
            NAME, settings, kafka=kafka, state=state, tables=True, buffer=BUFFER_EVENTS_MAX
        )
        self._table = declare_table(self.app, "streams", settings.partitions, cache_bytes=TABLE_CACHE_BYTES)
        self._owners = PartitionOwners(self._handler, BOUNDS, crash=self.app.crash)
        self._owned = OwnedPartitions(self.app, self._owners, topics.INTAKE.name)
        verifier = signing_keys.verifier(settings)
        self._keyring = Keyring(
            verifier,
            time.time,
            fixed=settings.api_key_digest,
            takes_keys=bool(settings.intake_api_keys),
        )
        self._cancels = Cancels(self._owners.wake)
        scratch = Path(str(self.app.conf.datadir))
        self._sizes = Sizes(scratch / "sizes")
        self._kept = Sizes(scratch / "batches")
        self.quotas = Quotas(settings.limits_of, self._sizes, self._kept)
        rarely = functools.partial(Follower, kafka, rest_seconds=REST_SECONDS)
        self._followers = (
            Follower(kafka, topics.KEYS.name, self._keyring.fold),
            rarely(topics.BATCHES.name, self._batch_changed, applied=self._kept.commit),
            rarely(topics.FILES.name, self.quotas.file, applied=self._sizes.commit),
        )
        self._keyring.catch_up = self._followers[0].catch_up
        self._publisher = Publisher(sender=sender, requests=requests, store=store, quotas=self.quotas, vault=vault)
        self._resources = Resources(
            sender=sender,
            store=store,
            project=self._keyring.project,
            opening=functools.partial(intake.opening, verifier=verifier),
            quotas=self.quotas,
            clock=time.time,
            monotonic=time.monotonic,
            times=Times(
                idle_seconds=settings.intake_idle_seconds,
                age_seconds=settings.part_age_seconds,
                input_life_seconds=settings.input_life_seconds,
                part_bytes=settings.part_bytes,
            ),
            buffered=BufferedBytes(),
        )
        # A process that was killed left the files of its streams, which may be another process's now.
        shutil.rmtree(scratch / "ids", ignore_errors=True)
        self._factory = _factory(settings, catalog, self._resources, scratch / "ids")
        self._watching: asyncio.Task[None] | None = None
        self._identity = ""

    async def start(self) -> stage_app.StageApp:
        """Begin to follow keys, batches and files, and return the app to run."""
        name = topics.INTAKE.name
        identify = functools.partial(topic_identities, self.app.cluster, [name])
        self._identity = (await retry("reading the topic of the intake", identify))[name]
        keys, *others = self._followers
        await keys.start()
        start_together(*others)
        self._watching = watched(asyncio.create_task(self._owners.run_timers()), self.app.crash)
        return self.app

    async def stop(self) -> None:
        """Stop the followers, after the app."""
        if self._watching is not None:
            self._watching.cancel()
        for follower in self._followers:
            await follower.stop()
        self._sizes.close()
        self._kept.close()

    def _handler(self, number: int) -> RecordHandler:
        assembly = InputAssembly(
            self._resources, self._publisher, writer=secrets.token_hex(WRITER_BYTES), wake=self._owners.wake
        )
        partition = Partition(
            tables=Streams(PartitionTable(self._table, number), self.app.consumer_generation_id, self._identity),
            factory=self._factory(),
            publisher=self._publisher,
            assembly=assembly,
            resources=self._resources,
        )
        return RecordHandler(
            number,
            partition,
            self._resources,
            learn=self._keyring.learn,
            cancels=self._cancels,
            caught_up=self.caught_up,
        )

    def _batch_changed(self, key: str, value: bytes | None, offset: int) -> None:
        self._cancels.apply(key, value, offset)
        self.quotas.batch(key, value, offset)

    async def caught_up(self) -> None:
        """Wait until this process has read keys, batches and files, and so knows what projects hold."""
        for follower in self._followers:
            await follower.caught_up()


def _factory(
    settings: Settings, catalog: Catalog, resources: Resources, folder: Path
) -> Callable[[], StreamFactory]:
    def rules() -> Rules:
        serving = catalog.contents.serving
        return Rules(
            endpoint="",
            models={name: model.endpoints for name, model in serving.models.items()},
            aliases=serving.aliases,
            lines_max=NO_BOUND,
            bytes_max=NO_BOUND,
            reply_bytes_max=settings.reply_bytes_max,
        )

    return functools.partial(
        StreamFactory,
        resources,
        rules=rules,
        windows=settings.windows,
        default_window=settings.usual_window,
        cut=Cut(lines_max=settings.file_lines_max, bytes_max=settings.file_bytes_max),
        folder=folder,
    )
