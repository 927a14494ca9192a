"""Open batches over a real app: creates, appends and seals, on a log that is a list."""

import asyncio

import pytest
from support.dependencies import NOW, client_of, open_dependencies, with_settings
from support.trust import SIGNER, VERIFIER

from tidemill.api.inline import open_batches
from tidemill.configuration.projects import Limits
from tidemill.configuration.settings import Settings
from tidemill.ingest.streams.keyring import Keyring
from tidemill.quotas import Quota
from tidemill.schemas.log import codec, intake, topics
from tidemill.schemas.log.messages import BatchRecord, Claim, FileRecord, KeyRecord
from tidemill.schemas.resources.access import ApiKey, digest
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.schemas.resources.file import OBJECT_BYTES, File

BODY = {"endpoint": "/v1/embeddings", "completion_window": "24h", "open": True}
KEY = {"Idempotency-Key": "k"}


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch):
    """Nobody else appends."""
    monkeypatch.setattr(open_batches, "CLAIM_SECONDS_MAX", 0.0)


async def create(client, **fields):
    """An open batch."""
    answer = await client.post("/batches", json=BODY | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def append(client, batch_id, sequence, *names, **fields):
    """Append a request for each name."""
    requests = [{"custom_id": name, "body": {"model": "m", "input": name}} for name in names or ["a"]]
    return await client.post(
        f"/batches/{batch_id}/requests", json={"sequence": sequence, "requests": requests, **fields}
    )


def refusal(answer):
    """The status and the code of a refusal."""
    return answer.status_code, answer.json()["error"]["code"]


def sent(deps):
    """The values of all records of the intake."""
    return [value for topic, _, value in deps.log.records if topic == topics.INTAKE.name]


def seen(deps, batch, **changes):
    """Let the view see a batch as results has it."""
    extras = {name: changes.pop(name) for name in ("open", "sequence", "stream", "input_bytes") if name in changes}
    batch = Batch.model_validate(batch)
    batch = batch.model_copy(update={"tidemill": batch.tidemill.model_copy(update=extras), **changes})
    deps.view.fold(topics.BATCHES.name, [(batch.id, codec.encode(BatchRecord(project="p", batch=batch)), 10_000)])


async def test_an_open_batch_is_in_progress_at_once(client, deps):
    """A record opens it; no command and no file exists."""
    made = await create(client, metadata={"name": "n"})
    assert (made["status"], made["in_progress_at"]) == ("in_progress", made["created_at"])
    assert (made["tidemill"]["open"], made["tidemill"]["stream"], made["tidemill"]["name"]) == (
        True,
        made["id"],
        "n",
    )
    assert {topic for topic, _, _ in deps.log.records} == {topics.CLAIMS.name, topics.INTAKE.name}
    assert sent(deps) == [b""]


async def test_appends_are_records_in_order(client, deps):
    """Each is one record; one that is sent again is not in the log twice, also once the batch is sealed."""
    made = await create(client)
    for sequence, repeated in ((1, False), (1, True), (2, False), (1, True)):
        answer = await append(client, made["id"], sequence, f"{sequence}-a", f"{sequence}-b")
        assert answer.json() == {
            "object": "batch.append", "batch_id": made["id"], "sequence": sequence, "requests": 2,
            "repeated": repeated,
        }  # fmt: skip
    assert [value.count(b"\n") for value in sent(deps)] == [0, 2, 2]
    sealed = (await client.post(f"/batches/{made['id']}/seal", json={"sequence": 2})).json()
    assert sealed["tidemill"]["open"] is False
    assert (await append(client, made["id"], 2)).status_code == 200
    assert refusal(await append(client, made["id"], 3)) == (409, "batch_not_open")
    assert (await client.post(f"/batches/{made['id']}/seal", json={})).json()["id"] == made["id"]
    assert len(sent(deps)) == 4


async def test_concurrent_copies_of_an_append_are_one_record(client, deps):
    """Of one process."""
    made = await create(client)
    answers = await asyncio.gather(*(append(client, made["id"], 1) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(sent(deps)) == 2


async def test_a_gap_is_refused(client, deps):
    """The answer says which append comes next; a seal with another number of appends is refused, too."""
    made = await create(client)
    answer = await append(client, made["id"], 2)
    assert refusal(answer) == (409, "sequence_gap")
    assert "the next one is 1" in answer.json()["error"]["message"]
    assert refusal(await client.post(f"/batches/{made['id']}/seal", json={"sequence": 1})) == (409, "sequence_gap")
    assert len(sent(deps)) == 1


async def test_another_process_goes_on_where_the_first_was(tmp_path, client, monkeypatch):
    """Once it sees the last append; a copy of that one changes nothing."""
    monkeypatch.setattr(open_batches, "CLAIM_SECONDS_MAX", 30.0)
    made = await create(client)
    await append(client, made["id"], 1)
    async with open_dependencies(tmp_path / "other") as other, client_of(other) as second:
        seen(other, made)
        waiting = asyncio.ensure_future(append(second, made["id"], 2))
        await asyncio.sleep(0)
        seen(other, made, sequence=1)
        assert (await waiting).status_code == 200
        assert (await append(second, made["id"], 1)).status_code == 200
        assert len(sent(other)) == 1


@pytest.mark.parametrize("status", [Status.CANCELLING, Status.FINALIZING, Status.COMPLETED, Status.EXPIRED])
async def test_only_a_batch_at_work_accepts_requests(client, deps, status):
    """A batch of a file accepts none at all."""
    made = await create(client)
    seen(deps, made, status=status)
    assert refusal(await append(client, made["id"], 1)) == (409, "batch_not_open")
    plain = await client.post("/batches", json=BODY | {"open": False, "input_file_id": "file-x"})
    assert refusal(await append(client, plain.json()["id"], 1)) == (409, "batch_not_open")
    assert refusal(await client.post(f"/batches/{plain.json()['id']}/seal", json={})) == (409, "batch_not_open")
    assert (await append(client, "batch_" + "0" * 32, 1)).status_code == 404


async def test_a_direct_producer_ends_its_own_stream(client, deps):
    """The refusal of a seal says how."""
    made = await create(client)
    seen(deps, made, stream="crawl")
    answer = await client.post(f"/batches/{made['id']}/seal", json={})
    assert refusal(answer) == (409, "batch_not_open")
    assert "a record with 'tidemill-end' seals it" in answer.json()["error"]["message"]


async def test_a_repeated_create_opens_one_batch(client, deps):
    """Also if the log took the claim and not the record that opens it: the next try sends that one."""
    deps.log.refused.add(topics.INTAKE.name)
    assert (await client.post("/batches", json=BODY, headers=KEY)).status_code == 503
    deps.log.refused.clear()
    made = (await client.post("/batches", json=BODY, headers=KEY)).json()
    again = (await client.post("/batches", json=BODY, headers=KEY)).json()
    claims = [value for topic, _, value in deps.log.records if topic == topics.CLAIMS.name]
    assert {Claim.model_validate_json(value).command.batch.id for value in claims} == {made["id"]} == {again["id"]}
    assert sent(deps) == [b""]
    other = await client.post("/batches", json=BODY | {"endpoint": "/v1/responses"}, headers=KEY)
    assert refusal(other) == (409, "idempotency_key_reused")


async def test_a_key_outlives_its_claim(tmp_path, client):
    """A process that knows the batch alone finds it."""
    made = (await client.post("/batches", json=BODY, headers=KEY)).json()
    async with open_dependencies(tmp_path / "other") as late, client_of(late) as other:
        seen(late, made)
        assert (await other.post("/batches", json=BODY, headers=KEY)).json()["id"] == made["id"]
        plain = BODY | {"open": False, "input_file_id": "f"}
        assert refusal(await other.post("/batches", json=plain, headers=KEY)) == (409, "idempotency_key_reused")
        assert sent(late) == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input_file_id": "file-x"}, "open"),
        ({"requests": [{"custom_id": "1", "body": {}}]}, "open"),
        ({"dedupe": "all"}, "dedupe"),
        ({"open": "yes"}, "open"),
    ],
)
async def test_what_does_not_go_with_an_open_batch(client, deps, fields, param):
    """The error names the field."""
    answer = await client.post("/batches", json=BODY | fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert sent(deps) == []


async def test_an_append_is_one_record(client):
    """Requests that do not fit into one are refused, and the next try has the same number."""
    made = await create(client)
    long = {"model": "m", "input": "x" * (open_batches.APPEND_BYTES_MAX - 50)}
    answer = await append(client, made["id"], 1, requests=[{"custom_id": "1", "body": long}])
    assert answer.status_code == 413
    assert (await append(client, made["id"], 1)).status_code == 200


async def test_the_bytes_of_open_batches_count(tmp_path, deps):
    """At once, before ingest has them; another process counts what the log shows; in the end the file counts."""
    deps = with_settings(deps, Settings(limits=Limits(bytes_stored_max=OBJECT_BYTES + 200)))
    async with client_of(deps) as client:
        made = await create(client)
        assert (await append(client, made["id"], 1)).status_code == 200
        size = len(sent(deps)[-1])
        assert size <= 100
        assert (await append(client, made["id"], 2)).status_code == 200
        answer = await append(client, made["id"], 3)
        assert (answer.status_code, "this append has" in answer.json()["error"]["message"]) == (429, True)
        assert len(sent(deps)) == 3
        # Ingest is behind: its count does not take back what this process has sent.
        seen(deps, made, sequence=1, input_bytes=size)
        assert (await append(client, made["id"], 3)).status_code == 429
        seen(deps, made, sequence=2, input_bytes=None, open=False)
        assert deps.view.quotas.held("p", Quota.BYTES) == 0
        file = File(
            id=made["input_file_id"],
            bytes=2 * size,
            created_at=NOW,
            expires_at=None,
            filename="i",
            purpose="batch",
        )
        record = FileRecord(project="p", file=file, key="files/i", sha256="0" * 64, lines=2)
        deps.view.fold(topics.FILES.name, [(file.id, codec.encode(record), 10_001)])
        assert deps.view.quotas.held("p", Quota.BYTES) == 2 * size + OBJECT_BYTES
    async with open_dependencies(tmp_path / "other") as fresh:
        other = with_settings(fresh, deps.settings)
        async with client_of(other) as client:
            seen(other, made, sequence=2, input_bytes=2 * size)
            assert (await append(client, made["id"], 3)).status_code == 429
            assert sent(other) == []


@pytest.mark.parametrize("step_seconds", [-86_400 * 30, -3600, 0, 3600, 86_400 * 30])
async def test_accepted_records_outlive_their_key(client, deps, step_seconds):
    """The api has checked the key: ingest takes its records even if the key is revoked or expires after that.

    Nor does it matter whether the clocks of the api and of the log agree.
    """
    made = await create(client)
    await append(client, made["id"], 1)
    await client.post(f"/batches/{made['id']}/seal", json={})
    key = ApiKey(
        id="key-of-p", name="n", project="p", role="write", hint="h", created_at=NOW - 9, expires_at=NOW - 5,
        revoked_at=NOW - 5,
    )  # fmt: skip
    ring = Keyring(VERIFIER, lambda: NOW, fixed=None, takes_keys=False)
    ring.fold(key.id, SIGNER.key_record(KeyRecord(key=key, sha256=digest("key-of-p"))), 0)
    records = [headers for topic, headers in deps.log.headers if topic == topics.INTAKE.name]
    assert len(records) == 3
    for headers in records:
        secret = intake.secret(intake.own_headers(headers.items()))
        assert await ring.project(secret, made["id"], NOW + step_seconds) == "p"
