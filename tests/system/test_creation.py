"""A batch is created once: lost replies, idempotency keys, and two api processes of one installation.

No `results` runs here, so whatever a process knows of the other's batches it has from the claims.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from aiokafka import AIOKafkaConsumer
from support.api import KEY, Api
from support.dropper import Dropper
from support.waiting import wait_until

from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import ensure_topics
from tidemill.kafka.producer import Log
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchCreated, BatchRecord
from tidemill.schemas.log.part import file_key
from tidemill.schemas.resources.batch import Batch

pytestmark = pytest.mark.kafka

CHAT = "/v1/chat/completions"
RACERS = 8


@pytest.fixture(scope="module")
def apis(kafka, tmp_path_factory):
    """Two api processes."""
    asyncio.run(ensure_topics(Settings(), kafka))
    folder = tmp_path_factory.mktemp("creation")
    with Api(folder, kafka) as one, Api(folder, kafka) as other:
        yield one, other


@pytest.fixture
def clients(apis):
    """A plain client for each process."""
    with apis[0].client() as one, apis[1].client() as other:
        yield one, other


@pytest.fixture
def body(request):
    """The body of a create, another one for each test."""
    return {
        "input_file_id": "file-none", "endpoint": CHAT, "completion_window": "24h",
        "metadata": {"test": request.node.name, "of": ids.new_request_id()},
    }  # fmt: skip


def commands(api: Api, metadata: dict[str, str]) -> set[str]:
    """The ids of batches with this metadata in the creates of `commands`."""
    return {command.batch.id for command in created(api) if command.batch.metadata == metadata}


def created(api: Api) -> list[BatchCreated]:
    """The ids of all creates of `commands`."""

    async def read() -> list[BatchCreated]:
        consumer = AIOKafkaConsumer(
            topics.COMMANDS.name, bootstrap_servers=api.kafka, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            partitions = consumer.assignment()
            ends = await consumer.end_offsets(partitions)
            found = []
            while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    decoded = (codec.decode_command(record.value) for record in records)
                    found += [command for command in decoded if isinstance(command, BatchCreated)]
            return found
        finally:
            await consumer.stop()

    return asyncio.run(read())


def publish(api: Api, batch: Batch) -> None:
    """Say of a batch what `results` would."""

    async def send() -> None:
        log = Log(api.kafka)
        await log.send(topics.BATCHES.name, batch.id, codec.encode(BatchRecord(project="default", batch=batch)))
        await log.stop()

    asyncio.run(send())


def test_a_lost_reply_creates_no_second_batch(apis, body):
    """The SDK repeats its request, and gets the first batch."""
    with (
        Dropper(apis[0].url, drops=2) as proxy,
        openai.OpenAI(base_url=proxy.url, api_key=KEY, max_retries=3) as sdk,
    ):
        made = sdk.batches.create(**body)
        assert (proxy.dropped, proxy.requests) == (2, 3)
    assert commands(apis[0], body["metadata"]) == {made.id}


def test_a_retry_finds_its_first_try_in_another_process(apis, clients, body):
    """Another body, or a request that is no retry, creates another batch."""
    one, other = clients
    made = one.post("/batches", json=body, headers={"x-stainless-retry-count": "0"}).json()
    retry = {"x-stainless-retry-count": "1"}
    assert other.post("/batches", json=body, headers=retry).json()["id"] == made["id"]
    assert one.post("/batches", json=body, headers=retry).json()["id"] == made["id"]
    assert (
        other.post("/batches", json={**body, "endpoint": "/v1/responses"}, headers=retry).json()["id"]
        != made["id"]
    )
    again = other.post("/batches", json=body).json()
    assert again["id"] != made["id"]
    # A retry belongs to the latest of two equal requests.
    assert one.post("/batches", json=body, headers=retry).json()["id"] == again["id"]
    assert len(commands(apis[0], body["metadata"])) == 3


def test_concurrent_requests_with_a_key_create_one_batch(apis, clients, body):
    """Through both processes, with the same answer for all."""
    headers = {"idempotency-key": f"order {body['metadata']['of']}"}
    with ThreadPoolExecutor(RACERS) as pool:
        answers = list(
            pool.map(lambda n: clients[n % 2].post("/batches", json=body, headers=headers), range(RACERS))
        )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert commands(apis[0], body["metadata"]) == {answers[0].json()["id"]}


def test_a_key_stands_for_one_request(clients, body):
    """Another one is refused, also while the first is in progress, and the SDK does not retry it."""
    headers = {"idempotency-key": body["metadata"]["of"]}
    bodies = [{**body, "metadata": {**body["metadata"], "n": str(n)}} for n in range(RACERS)]
    with ThreadPoolExecutor(RACERS) as pool:
        answers = list(
            pool.map(lambda n: clients[n % 2].post("/batches", json=bodies[n], headers=headers), range(RACERS))
        )
    (winner,) = [answer for answer in answers if answer.status_code == 200]
    for answer in answers:
        if answer is not winner:
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (409, "idempotency_key_reused")
            assert answer.headers["x-should-retry"] == "false"
    assert winner.json()["metadata"]["n"] == str(answers.index(winner))


@pytest.mark.parametrize(
    ("key", "code"), [("", "invalid_value"), ("ä", "invalid_value"), ("k" * 256, "string_above_max_length")]
)
def test_invalid_idempotency_keys(clients, body, key, code):
    """A key has 1 to 255 printable characters."""
    answer = clients[0].post("/batches", json=body, headers=[("idempotency-key", key.encode())])
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "Idempotency-Key", code)


def test_processes_show_each_others_objects(apis, clients, body):
    """Reads, downloads, cancels and lists work on the other process."""
    one, other = clients
    file = one.post("/files", data={"purpose": "batch"}, files={"file": ("f", b"{}\n")}).json()
    batch = one.post("/batches", json=body | {"input_file_id": file["id"]}).json()
    assert other.get(f"/batches/{batch['id']}").json() == batch
    assert other.get(f"/files/{file['id']}").json() == file
    assert other.get(f"/files/{file['id']}/content").content == b"{}\n"
    cancelled = other.post(f"/batches/{batch['id']}/cancel").json()
    assert cancelled["status"] == "cancelling"
    publish(apis[0], Batch.model_validate(cancelled))
    wait_until(lambda: one.get(f"/batches/{batch['id']}").json()["status"] == "cancelling", "word of the cancel")
    for client in clients:
        found = wait_until(
            lambda client=client: client.get(
                "/batches", params={f"metadata[{name}]": value for name, value in body["metadata"].items()}
            ).json()["data"]
        )
        assert [each["id"] for each in found] == [batch["id"]]


def test_a_file_is_usable_at_once_through_any_process(apis, clients, body):
    """A batch created elsewhere has its input; a deleted file is not waited for."""
    one, other = clients
    for _ in range(5):
        file_id = one.post("/files", data={"purpose": "batch"}, files={"file": ("f", b"{}\n")}).json()["id"]
        body["input_file_id"] = file_id
        made = other.post("/batches", json=body).json()["id"]
        (command,) = [command for command in created(apis[0]) if command.batch.id == made]
        assert command.input is not None
    loose = one.post("/files", data={"purpose": "batch"}, files={"file": ("f", b"{}\n")}).json()["id"]
    assert other.delete(f"/files/{loose}").json()["deleted"]
    assert other.get(f"/files/{loose}").status_code == 404


def test_an_input_stays_if_another_process_deletes_it_after_the_create(apis, clients, body):
    """The bytes of a file without a batch go at once."""
    one, other = clients
    stored = []
    for is_input in (True, False) * 3:
        file_id = one.post("/files", data={"purpose": "batch"}, files={"file": ("f", b"{}\n")}).json()["id"]
        if is_input:
            assert one.post("/batches", json=body | {"input_file_id": file_id}).status_code == 200
        assert other.delete(f"/files/{file_id}").json()["deleted"]
        stored.append((apis[0].data / "store" / file_key(file_id)).exists())
    assert stored == [True, False] * 3


def test_lists_with_filters(clients, body):
    """By status, time and metadata; together, page by page; invalid ones are a 400."""
    one = clients[0]
    label = body["metadata"]["of"]
    made = [
        one.post("/batches", json=body | {"metadata": {"of": label, 'odd "key"]': str(n % 2)}}).json()["id"]
        for n in range(5)
    ]
    one.post(f"/batches/{made[0]}/cancel")

    def listed(**params: object) -> list[str]:
        answer = one.get("/batches", params={"metadata[of]": label, **params})
        assert answer.status_code == 200, answer.text
        return [batch["id"] for batch in answer.json()["data"]]

    assert sorted(listed()) == sorted(made)
    assert listed(status="cancelling") == made[:1]
    assert sorted(listed(status="validating")) == sorted(made[1:])
    assert listed(status="completed") == []
    assert sorted(listed(**{'metadata[odd "key"]]': "1"})) == sorted([made[1], made[3]])
    created = [one.get(f"/batches/{batch_id}").json()["created_at"] for batch_id in made]
    assert listed(created_after=max(created)) == listed(created_before=min(created)) == []
    assert len(listed(created_after=min(created) - 1, created_before=max(created) + 1)) == 5
    first = one.get("/batches", params={"metadata[of]": label, "limit": 3}).json()
    rest = one.get("/batches", params={"metadata[of]": label, "limit": 3, "after": first["last_id"]}).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert sorted(batch["id"] for batch in first["data"] + rest["data"]) == sorted(made)
    for params, param in (
        ({"status": "done"}, "status"),
        ({"created_after": "now"}, "created_after"),
        ({"created_before": "-1"}, "created_before"),
        ({"metadata[k]": "v" * 513}, "metadata.k"),
    ):
        answer = one.get("/batches", params=params)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_an_unknown_batch_is_a_404(clients):
    """After a moment's wait."""
    assert clients[0].get(f"/batches/{ids.new_batch_id()}").status_code == 404
