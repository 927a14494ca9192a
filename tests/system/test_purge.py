"""`tidemill purge` on a real log: what can be read of deleted batches, and what cannot."""

import pytest

from tidemill.configuration.security import Cluster
from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import ensure_model_topics, ensure_topics
from tidemill.kafka.producer import Log
from tidemill.ops import OperatorError
from tidemill.ops.purge import purge
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.codec import LineMark, RequestHead, lines_headers
from tidemill.schemas.log.messages import Erasure
from tidemill.schemas.log.part import LARGE_PREFIX, file_key
from tidemill.sealing.records import seal_outcome, seal_request
from tidemill.sealing.vault import Vault
from tidemill.sealing.wrapping import FileWrapper, new_key_text
from tidemill.storage.address import open_store

pytestmark = pytest.mark.kafka

MODEL = "purged"


@pytest.fixture
async def log(kafka):
    """The topics, and what appends to them."""
    await ensure_topics(Settings(), kafka)
    await ensure_model_topics(Settings(), kafka, MODEL)
    log = Log(Cluster(servers=kafka))
    await log.start()
    yield log
    await log.stop()


async def written(log, project, vault):
    """The id of a batch with one record of requests and one of outcomes in the log."""
    batch_id = ids.new_batch_id()
    head = RequestHead(batch_id=batch_id, project=project, first=0, deadline=9, url="/v1/embeddings")
    head, value = await seal_request(vault, head, b"{}")
    topic = topics.requests(MODEL).name
    await log.send(topic, f"{batch_id}/0", value, headers=codec.request_headers(head))
    marks = [LineMark(index=0, size=3, failed=False)]
    value, headers = await seal_outcome(vault, batch_id, b"{}\n", lines_headers(batch_id, marks))
    await log.send(topics.OUTCOMES.name, batch_id, value, headers=headers)
    return batch_id


async def test_purge_reports_remains_of_deleted_batches(kafka, log, tmp_path):
    """In clear, sealed, and of nothing; one by its id, and all of a project."""
    (tmp_path / "encryption_keys").write_text(new_key_text())
    settings = Settings(data=tmp_path, store=(tmp_path / "store").as_uri())
    vault = Vault(log, wrapper=FileWrapper(tmp_path / "encryption_keys"), seals=True)
    project, other = (f"purged-{ids.new_batch_id()}" for _ in range(2))
    clear, sealed = await written(log, project, Vault(None)), await written(log, project, vault)
    nothing, kept = ids.new_batch_id(), await written(log, project, Vault(None))
    said = []

    async def look(**which):
        said.clear()
        return await purge(settings, Cluster(servers=kafka), said.append, **which)

    for which in ({"batch_id": clear}, {"project": project}):
        with pytest.raises(OperatorError, match="no deletion"):
            await look(**which)
    for batch_id, whose in ((clear, project), (sealed, project), (nothing, other)):
        erasure = codec.encode(Erasure(project=whose, at=1))
        await log.send(topics.SECRETS.name, batch_id, erasure)
    await vault.destroy(sealed)

    assert await look(batch_id=nothing)
    assert said[-1] == f"{nothing}: nothing of it is readable"
    assert await look(project=other)
    assert not await look(batch_id=clear)
    for topic in (topics.requests(MODEL).name, topics.OUTCOMES.name):
        assert any(line.startswith(f"{topic}: 1 readable record; Kafka deletes the last one: ") for line in said)
    assert not await look(batch_id=sealed)
    assert said == [
        "records that cannot be decrypted: 2",
        "wrapped keys that Kafka has not compacted away yet: 1; check again in an hour",
        f"{sealed}: parts of it are readable",
    ]
    assert not await look(project=project)
    assert [line.split(":")[0] for line in said if line.startswith("batch_")] == [clear, sealed]
    assert not any(kept in line for line in said)


async def one():
    """An object's only chunk."""
    yield b"x"


async def test_objects_that_are_still_in_the_store(kafka, log, tmp_path, monkeypatch):
    """They are named, once results has had its time."""
    monkeypatch.setattr("tidemill.ops.purge.DELETED_SECONDS_MAX", 0)
    settings = Settings(data=tmp_path, store=(tmp_path / "store").as_uri())
    batch_id, said = ids.new_batch_id(), []
    key = f"{LARGE_PREFIX}{batch_id}/0-abc"
    store = open_store(settings.store_url)
    await store.write(key, one())
    await log.send(topics.SECRETS.name, batch_id, codec.encode(Erasure(project="p", at=1)))
    assert not await purge(settings, Cluster(servers=kafka), said.append, batch_id=batch_id)
    assert f"{key}: still in the store" in said
    await store.delete(key)
    source = ids.new_file_id("p")
    await store.write(file_key(source), one())
    erasure = codec.encode(Erasure(project="p", at=1, input_file_id=source))
    await log.send(topics.SECRETS.name, batch_id, erasure)
    assert not await purge(settings, Cluster(servers=kafka), said.append, batch_id=batch_id)
    assert said[-2] == (
        f"{file_key(source)}: the input, still in the store; to delete it: `tidemill delete --input {batch_id}`, "
        "unless another batch has it; a deletion under way takes half a minute"
    )
    await store.delete(file_key(source))
    assert await purge(settings, Cluster(servers=kafka), said.append, batch_id=batch_id[-8:])
    await store.close()
