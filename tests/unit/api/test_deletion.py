"""Deleted batches, and the lines that a replay leaves out; the log is a list."""

from dataclasses import replace

import orjson
import pytest
from support import hostile
from support.dependencies import NOW, batch_of, open_dependencies, with_settings

from tidemill.api.batches import file_removal
from tidemill.api.view.batch_tables import PROMISE_SECONDS_MAX
from tidemill.configuration.settings import Settings
from tidemill.kafka.follower import Tail
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.codec import RequestHead
from tidemill.schemas.log.messages import (
    BatchCreated,
    BatchRecord,
    Claim,
    Erasure,
    FileRecord,
    InputRef,
    LedgerRecord,
)
from tidemill.schemas.ports import LogRecord
from tidemill.schemas.resources.batch import Batch, Extras, FileReceipt, Receipt, Status, Usage
from tidemill.schemas.resources.bill import Tariff, bill
from tidemill.schemas.resources.by_model import ModelResult
from tidemill.schemas.resources.file import File

CHAT = "/v1/chat/completions"
REQUESTS = topics.requests("m").name
BATCH, OTHER = (f"batch_{digit * 32}" for digit in "ab")
INPUT = "file-" + "i" * 22


def file(file_id: str, purpose: str) -> FileRecord:
    """A file of two bytes."""
    shown = File(id=file_id, bytes=2, created_at=1, expires_at=None, filename="f", purpose=purpose)
    return FileRecord(project="p", file=shown, key=f"files/{file_id}", sha256="0" * 64)


def record(batch_id: str = BATCH, status: Status = Status.COMPLETED, **fields) -> BatchRecord:
    """A batch with an output file, labelled."""
    receipt = Receipt(lines=1, output=FileReceipt(lines=1, bytes=2, sha256="0" * 64), missing=0, double=0)
    batch = batch_of(
        batch_id, endpoint=CHAT, input_file_id=INPUT, status=status, created_at=1,
        expires_at=2, completed_at=NOW - 100, metadata={"a": "canary"},
        output_file_id=ids.derived_file_id(batch_id, "output"), tidemill=Extras(receipt=receipt), **fields,
    )  # fmt: skip
    return BatchRecord(project="p", batch=batch)


def requested(batch_id: str, *names: str) -> LogRecord:
    """A record of requests."""
    head = RequestHead(batch_id=batch_id, project="p", first=0, deadline=9, url=CHAT)
    lines = [
        orjson.dumps({"custom_id": name, "method": "POST", "url": CHAT, "body": {"model": "m"}}) for name in names
    ]
    return LogRecord(at_ms=1000, value=b"\n".join(lines), headers=tuple(codec.request_headers(head)))


@pytest.fixture(params=["alone", "beside a hostile project"], autouse=True)
def others(request, monkeypatch):
    """What is deleted does not depend on other projects."""
    if request.param != "alone":
        hostile.intrude(monkeypatch)


@pytest.fixture
async def deps(tmp_path, clock):
    """Dependencies with two ended batches of one input."""
    async with open_dependencies(tmp_path, clock) as deps:
        deps.view.put_file(file(INPUT, "batch"), 0)
        for name in (BATCH, OTHER):
            deps.view.put_batch(record(name))
            deps.view.put_file(file(ids.derived_file_id(name, "output"), "batch_output"), 0)
        yield with_settings(deps, Settings(models={"m": {"backends": [{"url": "http://127.0.0.1:9/v1"}]}}))


async def test_a_batch_is_deleted_at_once_and_for_good(deps, client):
    """From retrieval, lists, labels and files; a late record does not restore it, and a second delete succeeds."""
    for _ in range(2):
        answer = await client.delete(f"/batches/{BATCH}")
        assert (answer.status_code, answer.json()) == (200, {"id": BATCH, "object": "batch", "deleted": True})
    ((topic, key, value),) = deps.log.records
    command = codec.decode_command(value)
    assert (topic, key, command.kind, command.files) == (
        topics.COMMANDS.name,
        BATCH,
        "delete_requested",
        ("output",),
    )
    deps.view.fold(topics.BATCHES.name, [(BATCH, codec.encode(record()), 7)])
    assert (await client.get(f"/batches/{BATCH}")).status_code == 404
    found = await client.get("/batches", params={"metadata[a]": "canary"})
    assert [batch["id"] for batch in found.json()["data"]] == [OTHER]
    assert (await client.get(f"/files/{record().batch.output_file_id}/content")).status_code == 404
    assert (await client.get(f"/files/{INPUT}")).status_code == 200


async def test_a_batch_is_deleted_with_its_input(deps, client):
    """Also if the batch went before; while another batch has the input, it stays."""

    async def deleted(batch_id: str) -> str:
        answer = await client.delete(f"/batches/{batch_id}", params={"input": "true"})
        assert answer.status_code == 200
        return answer.json()["input_file"]

    assert [await deleted(BATCH), await deleted(BATCH)] == ["shared", "shared"]
    assert (await client.get(f"/files/{INPUT}")).status_code == 200
    assert (await client.delete(f"/batches/{OTHER}")).status_code == 200
    assert [await deleted(OTHER), await deleted(BATCH)] == ["deleted", "gone"]
    assert (await client.get(f"/files/{INPUT}")).status_code == 404
    commands = [
        codec.decode_command(value) for topic, _, value in deps.log.records if topic == topics.COMMANDS.name
    ]
    assert [(command.batch_id, command.input_file_id) for command in commands] == [(BATCH, INPUT), (OTHER, INPUT)]


async def test_a_deletion_that_ended_half_way_is_repeated(deps, client):
    """The input goes before the batch that names it; the repeated request finishes the rest."""
    await client.delete(f"/batches/{OTHER}")
    deps.log.refused.add(topics.COMMANDS.name)
    assert (await client.delete(f"/batches/{BATCH}", params={"input": "true"})).status_code == 503
    assert (await client.get(f"/files/{INPUT}")).status_code == 404
    assert (await client.get(f"/batches/{BATCH}")).status_code == 200
    deps.log.refused.clear()
    answer = await client.delete(f"/batches/{BATCH}", params={"input": "true"})
    assert answer.json()["input_file"] == "gone"
    assert (await client.get(f"/batches/{BATCH}")).status_code == 404


@pytest.mark.parametrize("went_before", [False, True])
async def test_an_input_stays_while_a_claim_of_it_has_no_batch(deps, client, clock, went_before):
    """Its create may be at work; a claim that never becomes a batch counts for an hour."""
    await client.delete(f"/batches/{OTHER}")
    if went_before:
        await client.delete(f"/batches/{BATCH}")
    claimed = record("batch_" + "c" * 32, Status.VALIDATING).batch.model_copy(update={"created_at": NOW})
    command = BatchCreated(project="p", batch=claimed, input=InputRef(key=f"files/{INPUT}", bytes=2))
    claim = codec.encode(Claim(command=command, fingerprint="x", is_retry=True))
    deps.view.fold(topics.CLAIMS.name, [(claimed.id, claim, 0)])
    before = list(deps.log.records)
    refused = await client.delete(f"/batches/{BATCH}", params={"input": "true"})
    assert (refused.status_code, "in an hour" in refused.text) == (409, True)
    assert deps.log.records == before
    assert (await client.get(f"/files/{INPUT}")).status_code == 200
    clock.now += PROMISE_SECONDS_MAX
    answer = await client.delete(f"/batches/{BATCH}", params={"input": "true"})
    assert answer.json()["input_file"] == "deleted"


async def test_a_running_batch_keeps_its_input(deps, client):
    """It is refused before the input is touched."""
    running = record("batch_" + "c" * 32, Status.IN_PROGRESS)
    deps.view.put_batch(running)
    answer = await client.delete(f"/batches/{running.batch.id}", params={"input": "true"})
    assert answer.status_code == 409
    assert not deps.log.records


async def test_another_project_cannot_delete_a_batch(deps, client):
    """For it there is no such batch, before and after."""
    stranger = {"authorization": "Bearer key-of-q"}
    assert (await client.delete(f"/batches/{BATCH}", headers=stranger)).status_code == 404
    assert not deps.log.records
    await client.delete(f"/batches/{BATCH}")
    assert (await client.delete(f"/batches/{BATCH}", headers=stranger)).status_code == 404


@pytest.mark.parametrize("status", [Status.VALIDATING, Status.IN_PROGRESS, Status.FINALIZING, Status.CANCELLING])
async def test_a_running_batch_cannot_be_deleted(deps, client, status):
    """The answer is a 409 that the SDKs do not retry."""
    deps.view.put_batch(record("batch_" + "c" * 32, status))
    answer = await client.delete(f"/batches/batch_{'c' * 32}")
    assert (answer.status_code, answer.headers["x-should-retry"]) == (409, "false")
    assert not deps.log.records


async def test_the_idempotency_key_of_a_deleted_batch(deps, client):
    """Its claim shows nothing of the batch, and does not create it again."""
    body = {"input_file_id": INPUT, "endpoint": CHAT, "completion_window": "24h", "metadata": {"a": "canary"}}
    key = {"idempotency-key": "k"}
    made = (await client.post("/batches", json=body, headers=key)).json()
    deps.view.put_batch(BatchRecord(project="p", batch=Batch.model_validate(made | {"status": "failed"})))
    assert (await client.delete(f"/batches/{made['id']}")).status_code == 200
    assert (await client.get(f"/batches/{made['id']}")).status_code == 404
    again = await client.post("/batches", json=body, headers=key)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "batch_deleted")
    assert (await client.get(f"/batches/{made['id']}")).status_code == 404


@pytest.mark.parametrize("has_entry", [True, False])
async def test_an_idempotency_key_outlives_the_deletion(deps, client, has_entry):
    """The ledger keeps the batch's entry for good: a second batch of its id would replace it."""
    body = {"input_file_id": INPUT, "endpoint": CHAT, "completion_window": "24h"}
    used = ids.derived_batch_id("p", "k")
    result = ModelResult(model="m", completed=1, failed=0, copies=0, usage=Usage(), bill=bill(1, 1, Tariff()))
    entry = LedgerRecord(
        batch_id=used, project="p", endpoint=CHAT, status=Status.COMPLETED, ended_at=NOW - 30 * 86_400, day="1",
        models=(result,),
    )  # fmt: skip
    if has_entry:
        deps.view.fold(topics.LEDGER.name, [(used, codec.encode(entry), 0)])
    answer = await client.post("/batches", json=body, headers={"idempotency-key": "k"})
    assert answer.status_code == (409 if has_entry else 200)
    assert answer.json().get("error", {}).get("code") == ("batch_deleted" if has_entry else None)
    assert bool(deps.log.records) is not has_entry


async def test_batches_are_deleted_after_their_life(deps):
    """With the setting, so many seconds after their end; by default they stay."""
    await file_removal.sweep(deps)
    assert not deps.log.records
    for life, count in ((101, 0), (99, 2), (99, 2)):
        aged = replace(deps, settings=deps.settings.model_copy(update={"batch_life_seconds": life}))
        await file_removal.sweep(aged)
        assert [topic for topic, _, _ in deps.log.records] == [topics.COMMANDS.name] * count


async def test_a_replay_leaves_out_deleted_lines(deps, client):
    """Lines of a deleted batch, or of one with a deleted input; a dry run counts each once."""
    deps.history.topics[REQUESTS] = [requested(BATCH, "r0", "r1"), requested(BATCH, "r0"), requested(OTHER, "x0")]
    source = {"model": "m", "from": "0"}
    await client.delete(f"/batches/{BATCH}")
    plan = (await client.post("/replays", json={"source": source, "dry_run": True})).json()
    assert (plan["lines"], plan["skipped_lines"], plan["batches"]) == (1, 2, 1)
    new = (await client.post("/replays", json={"source": source})).json()
    content = (await client.get(f"/files/{new['input_file_id']}/content")).content
    assert (b"x0" in content, b"r0" in content) == (True, False)
    assert (await client.delete(f"/files/{INPUT}")).status_code == 200
    for dry in (True, False):
        refused = await client.post("/replays", json={"source": source, "dry_run": dry})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "lines_deleted")
    whole = await client.post(f"/batches/{BATCH}/rerun", json={"lines": "all"})
    assert whole.status_code == 404


async def test_a_rebuilt_view_knows_deleted_batches(deps, client):
    """From `tidemill.secrets`, since the log keeps tombstones of batches for some days only."""
    erasure = codec.encode(Erasure(project="p", at=1))
    deps.view.resume(topics.SECRETS.name, Tail(identity="c/t", end=0))
    deps.view.fold(topics.SECRETS.name, [(BATCH, erasure, 0)])
    assert (await client.get(f"/batches/{BATCH}")).status_code == 404
    deps.view.fold(topics.SECRETS.name, [(BATCH, None, 1)])
    assert not deps.view.erasures.is_deleted("p", BATCH)
