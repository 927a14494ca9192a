"""How far ingest is behind: a bucket of a user that does not answer does not count."""

import asyncio
import time
from types import SimpleNamespace

from prometheus_client import REGISTRY
from support.catalog import fixed_catalog
from support.waiting import until

from tidemill.configuration.settings import Settings
from tidemill.faust.monitored_apps import MonitoredApps
from tidemill.ingest.app import NAME, Ingest
from tidemill.schemas.buckets import BucketObject
from tidemill.schemas.log.messages import BatchCreated, InputRef
from tidemill.schemas.log.signing import Signer
from tidemill.schemas.resources.batch import Batch, Status

AGO = {"batch_import": 7200, "batch_done": 3600, "batch_own": 600}
"""Seconds since the commands of one partition, in their order."""


class Silent:
    """An importer whose bucket answers once `answered` is set."""

    def __init__(self):
        self.answered = asyncio.Event()

    def of(self, command, _):
        """What `run` gets."""
        return command

    async def run(self, *_):
        """Wait for the bucket."""
        await self.answered.wait()


def created(batch_id):
    """A batch whose input is in a bucket."""
    now = int(time.time())
    batch = Batch(
        id=batch_id, endpoint="/v1/embeddings", input_file_id="file-x", completion_window="24h",
        status=Status.VALIDATING, created_at=now, expires_at=now + 86_400,
    )  # fmt: skip
    source = BucketObject(uri="s3://theirs/in", etag="e", bytes=1)
    return BatchCreated(project="p", batch=batch, input=InputRef(key="files/file-x", bytes=1, source=source))


def lag():
    return REGISTRY.get_sample_value("tidemill_kafka_consumer_lag_seconds", {"consumer": NAME})


async def test_an_import_does_not_make_ingest_late(tmp_path):
    """Until it ends, only the other commands count; the guard of the retention time needs all of them."""
    settings = Settings(kafka="127.0.0.1:9", data=tmp_path, verify_keys=[Signer.made().public])
    ingest = Ingest(settings, settings.cluster, fixed_catalog({}, {}))
    ingest._stage._importer = silent = Silent()
    now, gate = time.time(), ingest._gates["commands", 1]
    tickets = [
        gate.admit(SimpleNamespace(message=SimpleNamespace(key=batch_id.encode(), timestamp=now - ago)))
        for batch_id, ago in AGO.items()
    ]
    assert not list(gate.finish(tickets[1]))
    handling = asyncio.create_task(ingest._stage.handle(created("batch_import")))
    monitored = MonitoredApps()
    monitored._apps = [(NAME, ingest.app, None, None)]

    async def retention():
        return 86_400.0

    guarding = asyncio.create_task(monitored.guard_retention(retention))
    await until(lambda: ingest._stage.is_importing("batch_import") and lag() is not None)
    assert AGO["batch_own"] <= lag() < AGO["batch_done"]
    assert ingest.app.oldest() == now - AGO["batch_import"]
    silent.answered.set()
    await until(lambda: lag() >= AGO["batch_import"])
    for task in (handling, guarding):
        task.cancel()
