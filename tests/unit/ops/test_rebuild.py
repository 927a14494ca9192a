"""`tidemill rebuild` leaves nothing open."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from tidemill.configuration.settings import Settings
from tidemill.kafka.connection import LogUnavailable
from tidemill.ops import rebuild as command
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.storage.directory import DirectoryStore

BATCH = "batch_" + "0" * 32


class Reader:
    """A log with one batch, whose lines cannot be read."""

    def partitions(self, topic):
        del topic
        return [0]

    async def records(self, topic, starts=None):
        del starts
        if topic == topics.OUTCOMES.name:
            raise LogUnavailable("the broker is away")
        if topic == topics.BATCHES.name:
            batch = Batch(
                id=BATCH, endpoint="/v1/embeddings", input_file_id="file-1", completion_window="24h",
                status=Status.COMPLETED, created_at=1, expires_at=9, completed_at=2,
            )  # fmt: skip
            record = BatchRecord(project="p", batch=batch)
            yield SimpleNamespace(key=BATCH.encode(), value=codec.encode(record))


@pytest.mark.parametrize(("name", "error"), [(BATCH, LogUnavailable), ("batch_none", None)])
async def test_the_store_is_closed(tmp_path, monkeypatch, name, error):
    """Once, also if the log fails in the middle."""
    closes = []

    async def close(self):
        closes.append(self)

    monkeypatch.setattr(DirectoryStore, "close", close)
    monkeypatch.setattr(command.history, "reading", lambda _: nullcontext(Reader()))
    monkeypatch.setattr(command, "Rebuild", lambda batch, store, **_: SimpleNamespace(batch=batch, store=store))
    settings = Settings(store=tmp_path.as_uri(), data=tmp_path)
    with pytest.raises(error) if error else nullcontext():
        assert not await command.rebuild(settings, None, [name], lambda _: None, write=False)
    assert len(closes) == 1
