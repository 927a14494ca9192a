"""Creating a batch once, on a log in memory: which claim counts, and how a repetition completes it."""

import asyncio

import pytest
from support.dependencies import NOW, batch_of, client_of, with_settings

from tidemill.api.batches.creation import OVERTAKEN_SECONDS_MIN, Repetition
from tidemill.api.requests import reading
from tidemill.api.view.batch_tables import CLAIM_SECONDS_MAX, REPEAT_SECONDS_MAX, Claims
from tidemill.api.view.sqlite import Database
from tidemill.configuration.settings import Settings
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchCreated, BatchRecord, Claim
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.schemas.resources.error import ApiError
from tidemill.storage.buckets import Buckets, Opening

BODY = {"input_file_id": "file-none", "endpoint": "/v1/embeddings", "completion_window": "24h"}


@pytest.fixture
def claims(tmp_path, clock):
    """Claims in a file of their own."""
    database = Database(tmp_path / "claims")
    yield Claims(database, clock)
    database.close()


def batch(batch_id: str, created_at: int = NOW) -> Batch:
    """A new batch."""
    return batch_of(batch_id, status=Status.VALIDATING, created_at=created_at, expires_at=created_at + 86_400)


def claim(
    batch_id: str,
    *,
    created_at: int = NOW,
    is_retry: bool = False,
    fingerprint: str = "f",
    seen: int = 0,
) -> bytes:
    """A record of the topic."""
    command = BatchCreated(project="p", batch=batch(batch_id, created_at))
    made = Claim(command=command, fingerprint=fingerprint, is_retry=is_retry, seen=seen)
    return codec.encode(made)


def commands(deps) -> list[str]:
    """The batch ids of all create commands."""
    sent = (codec.decode_command(value) for topic, _, value in deps.log.records if topic == topics.COMMANDS.name)
    return [command.batch.id for command in sent if isinstance(command, BatchCreated)]


def test_the_first_claim_of_an_id_counts(claims):
    """Later ones change nothing."""
    claims.fold("b", claim("b", fingerprint="first"), 0)
    claims.fold("b", claim("b", fingerprint="second"), 1)
    assert claims.first("p", "b").fingerprint == "first"
    assert claims.first("q", "b") is None


def test_a_retry_repeats_the_latest_first_try(claims, clock):
    """Of the last two minutes, and never another retry if there is a first try."""
    for offset, (name, is_retry) in enumerate([("r1", True), ("a", False), ("b", False), ("r2", True)]):
        claims.fold(name, claim(name, is_retry=is_retry), offset)
    assert claims.repeated("p", "f").command.batch.id == "b"
    assert claims.repeated("p", "other") is None
    assert claims.repeated("q", "f") is None
    clock.now += REPEAT_SECONDS_MAX
    assert claims.repeated("p", "f") is not None
    clock.now += 1
    assert claims.repeated("p", "f") is None


def test_retries_without_a_first_try_create_one_batch(claims):
    """The earliest of them."""
    for offset, name in enumerate(["r1", "r2", "r3"]):
        claims.fold(name, claim(name, is_retry=True), offset)
    assert claims.repeated("p", "f").command.batch.id == "r1"


def test_a_first_try_behind_its_retry_stands_for_it(claims):
    """Later creates of the same request are batches of their own, and their retries find these."""
    for offset, (name, is_retry) in enumerate([("r1", True), ("r2", True), ("late", False)]):
        claims.fold(name, claim(name, is_retry=is_retry), offset)
    assert claims.stands_for(claims.first("p", "late")).command.batch.id == "r1"
    assert claims.repeated("p", "f").command.batch.id == "r1"
    claims.fold("new", claim("new", seen=claims.seen), 3)
    assert claims.stands_for(claims.first("p", "new")).command.batch.id == "new"
    assert claims.repeated("p", "f").command.batch.id == "new"
    assert claims.stands_for(claims.first("p", "late")).command.batch.id == "r1"


def test_claims_are_kept_as_long_as_in_the_log(claims, clock):
    """Then the view deletes them."""
    claims.fold("old", claim("old"), 0)
    clock.now += CLAIM_SECONDS_MAX + 1
    claims.fold("new", claim("new", created_at=clock.now), 1)
    assert claims.first("p", "old") is None
    assert claims.first("p", "new") is not None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, Repetition()), ({"x-stainless-retry-count": "0"}, Repetition()),
        ({"x-stainless-retry-count": "2"}, Repetition(retries="2")),
        ({"idempotency-key": "a b~"}, Repetition(key="a b~")),
    ],
)  # fmt: skip
def test_headers_of_a_repetition(headers, expected):
    """A key, a retry, or neither."""
    found = reading.headers(Repetition, headers)
    assert (found.key, found.is_retry) == (expected.key, expected.is_retry)


@pytest.mark.parametrize("key", ["", "ä", "a\tb", "a\n", "k" * 256])
def test_invalid_idempotency_keys(key):
    """A 400 each."""
    with pytest.raises(ApiError) as caught:
        reading.headers(Repetition, {"idempotency-key": key})
    assert (caught.value.status, caught.value.body.param) == (400, "Idempotency-Key")


@pytest.mark.parametrize("headers", [{"idempotency-key": "k"}, {"x-stainless-retry-count": "1"}])
async def test_a_repetition_sends_a_missing_command(deps, client, clock, headers):
    """It is the command of the first try."""
    deps.log.refused = {topics.COMMANDS.name}
    assert (await client.post("/batches", json=BODY, headers=headers)).status_code == 503
    assert (await client.get("/batches")).json()["data"] == []
    deps.log.refused = set()
    clock.now += 10
    made = (await client.post("/batches", json=BODY, headers=headers)).json()
    assert made["created_at"] == NOW
    assert commands(deps) == [made["id"]]
    assert (await client.post("/batches", json=BODY, headers=headers)).json() == made
    assert commands(deps) == [made["id"]]


async def test_a_slow_first_try_and_its_retry_are_one_batch(deps, client, clock, monkeypatch):
    """The client has given the first try up while it waits for the log, and has sent it again."""
    send, waiting, go = deps.log.send, asyncio.Event(), asyncio.Event()

    async def slow(topic, key, value, *, headers=()):
        if topic == topics.CLAIMS.name and not waiting.is_set():
            clock.now += OVERTAKEN_SECONDS_MIN
            waiting.set()
            await go.wait()
        return await send(topic, key, value, headers=headers)

    monkeypatch.setattr(deps.log, "send", slow)
    first = asyncio.create_task(client.post("/batches", json=BODY))
    await waiting.wait()
    retry = (await client.post("/batches", json=BODY, headers={"x-stainless-retry-count": "1"})).json()
    go.set()
    assert (await first).json()["id"] == retry["id"]
    again = await client.post("/batches", json=BODY, headers={"x-stainless-retry-count": "2"})
    assert again.json()["id"] == retry["id"]
    assert set(commands(deps)) == {retry["id"]}
    assert (await client.post("/batches", json=BODY)).json()["id"] != retry["id"]


async def test_a_create_after_the_retry_of_a_lost_one_is_a_batch_of_its_own(deps, client, clock):
    """The first try came to no process; the client creates the same batch once more, on purpose."""
    retry = (await client.post("/batches", json=BODY, headers={"x-stainless-retry-count": "1"})).json()
    clock.now += 1
    other = (await client.post("/batches", json=BODY)).json()
    assert other["id"] != retry["id"]
    again = await client.post("/batches", json=BODY, headers={"x-stainless-retry-count": "1"})
    assert again.json()["id"] == other["id"]
    assert commands(deps) == [retry["id"], other["id"]]


async def test_without_its_claim_no_batch_is_created(deps, client):
    """A later repetition could not find it."""
    deps.log.refused = {topics.CLAIMS.name}
    assert (await client.post("/batches", json=BODY)).status_code == 503
    assert deps.log.records == []


async def test_a_key_holds_after_its_claim_is_deleted(deps, client):
    """The batch itself has its id."""
    known = batch(ids.derived_batch_id("p", "k")).model_copy(update={"input_file_id": "file-none"})
    deps.view.put_batch(BatchRecord(project="p", batch=known))
    headers = {"idempotency-key": "k"}
    assert (await client.post("/batches", json=BODY, headers=headers)).json()["id"] == known.id
    other = await client.post("/batches", json=BODY | {"metadata": {"a": "b"}}, headers=headers)
    assert (other.status_code, other.headers["x-should-retry"]) == (409, "false")
    assert commands(deps) == []


async def test_idempotency_keys_belong_to_a_project(deps, client):
    """The same key of another project creates another batch."""
    headers = {"idempotency-key": "k"}
    mine = (await client.post("/batches", json=BODY, headers=headers)).json()["id"]
    theirs = await client.post("/batches", json=BODY, headers=headers | {"authorization": "Bearer key-of-q"})
    assert theirs.json()["id"] != mine
    assert (await client.get(f"/batches/{theirs.json()['id']}")).status_code == 404
    assert len(commands(deps)) == 2


@pytest.mark.parametrize(
    ("metadata", "filename", "name"),
    [
        ({"name": "nightly"}, "in.jsonl", "nightly"),
        ({"name": ""}, "in.jsonl", "in.jsonl"),
        (None, "x" * 300, "x" * 255),
        (None, None, None),
    ],
)
async def test_the_name_of_a_batch(client, metadata, filename, name):
    """From its metadata, else from its file; any filename is accepted."""
    body = BODY | {"metadata": metadata}
    if filename:
        form = {"data": {"purpose": "batch"}, "files": {"file": (filename, b"{}\n")}}
        body["input_file_id"] = (await client.post("/files", **form)).json()["id"]
    made = (await client.post("/batches", json=body)).json()
    assert (made["tidemill"]["name"], made["metadata"]) == (name, metadata)


EMBEDDING = b'{"custom_id":"1","method":"POST","url":"/v1/embeddings","body":{"input":"%b","model":"%b"}}\n'


@pytest.mark.parametrize(
    ("first", "given", "expected"),
    [
        (EMBEDDING % (b"x", b"once"), None, "batch"),
        (EMBEDDING % (b"x", b"also-once"), None, "batch"),
        (EMBEDDING % (b"x", b"each"), None, None),
        (EMBEDDING % (b"x", b"unknown"), None, None),
        (EMBEDDING % (b"x" * 3_000_000, b"once"), None, "batch"),
        (b"\n \n" + EMBEDDING % (b"x", b"once"), None, "batch"),
        (b"", None, None),
        (EMBEDDING % (b"x", b"once"), "none", "none"),
        (EMBEDDING % (b"x", b"each"), "all", "all"),
    ],
    ids=lambda value: value[-40:] if isinstance(value, bytes) else value,
)
async def test_the_model_of_the_first_line_decides_which_equal_lines_are_asked_once(deps, first, given, expected):
    """Unless the request does; the command has it, so that ingest decides the same after a crash."""
    backends = [{"url": "http://127.0.0.1:9/v1"}]
    once = {"backends": backends, "dedupe": "batch", "aliases": ["also-once"]}
    models = {"once": once, "each": {"backends": backends}}
    async with client_of(with_settings(deps, Settings(models=models))) as client:
        form = {"data": {"purpose": "batch"}, "files": {"file": ("f", first + EMBEDDING % (b"x", b"each"))}}
        file_id = (await client.post("/files", **form)).json()["id"]
        body = BODY | {"input_file_id": file_id} | ({"dedupe": given} if given else {})
        made = (await client.post("/batches", json=body)).json()
    assert made["tidemill"]["dedupe"] == expected
    sent = [codec.decode_command(value) for topic, _, value in deps.log.records if topic == topics.COMMANDS.name]
    assert [command.batch.tidemill.dedupe for command in sent] == [expected]


class OneObject:
    """A bucket with one object."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def opening(self, key, count):
        del key
        return Opening(etag="e", size=len(self._content), first=self._content[:count])


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n \n", b"\xef\xbb\xbf\r\n"])
@pytest.mark.parametrize(("name", "expected"), [(b"once", "batch"), (b"each", None)])
async def test_the_first_line_of_an_object_decides_too(deps, monkeypatch, start, name, expected):
    """Whatever stands before it."""
    backends = [{"url": "http://127.0.0.1:9/v1"}]
    models = {"once": {"backends": backends, "dedupe": "batch"}, "each": {"backends": backends}}
    bucket = OneObject(start + EMBEDDING % (b"x", name) * 2)
    monkeypatch.setattr(Buckets, "find", lambda *_, **__: bucket)
    async with client_of(with_settings(deps, Settings(models=models))) as client:
        made = (await client.post("/batches", json=BODY | {"input_file_id": "s3://lake/in.jsonl"})).json()
    assert made["tidemill"]["dedupe"] == expected
