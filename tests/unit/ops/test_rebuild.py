"""`tidemill rebuild` says whether the store has the files of the receipts, and leaves nothing open."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from tidemill.configuration.settings import Settings
from tidemill.kafka.connection import LogUnavailable
from tidemill.ops import rebuild as command
from tidemill.results.files.overlay_store import OverlayStore
from tidemill.results.files.rebuild import Rebuilt
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.log.part import file_key, index_key
from tidemill.schemas.ports import once, read_all
from tidemill.schemas.resources.batch import Batch, FileReceipt, Receipt, Status
from tidemill.storage.directory import DirectoryStore

BATCH = "batch_" + "0" * 32
ENDED = Batch(
    id=BATCH, endpoint="/v1/embeddings", input_file_id="file-1", completion_window="24h",
    status=Status.COMPLETED, created_at=1, expires_at=9, completed_at=2,
)  # fmt: skip


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
            record = BatchRecord(project="p", batch=ENDED)
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


@pytest.mark.parametrize("damage", [b"cut", None])
async def test_a_damaged_file_is_a_fault_until_it_is_replaced(tmp_path, damage):
    """One that is cut or gone: only `--write` makes the store have the files of the receipt."""
    file_id = ids.derived_file_id(BATCH, "output")
    stored = file_key(file_id, "writer")
    receipt = Receipt(lines=1, output=FileReceipt(lines=1, bytes=5, sha256="0" * 64))
    rebuilt = Rebuilt(receipt=receipt, published=receipt, unreadable=0)
    below = DirectoryStore(tmp_path / "store")
    overlay = OverlayStore(tmp_path / "scratch", below)
    for key in (file_key(file_id), index_key(file_key(file_id))):
        await overlay.write(key, once(b"whole"))
    await below.write(index_key(stored), once(b"whole"))
    if damage:
        await below.write(stored, once(damage))

    async def checked(*, write):
        return await command.has_files(overlay, ENDED, rebuilt, {file_id: stored}, lambda _: None, write=write)

    assert not await checked(write=False)
    assert await checked(write=True)
    assert await checked(write=False)
    assert await read_all(below.read(stored)) == b"whole"
