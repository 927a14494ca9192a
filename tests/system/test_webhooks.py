"""Webhooks with a real broker, an api, two processes of the stage, and receivers with OpenAI's SDKs."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack

import openai
import pytest
from aiokafka import AIOKafkaProducer
from support import sdk
from support.api import share_log
from support.fleet import Fleet
from support.receiver import Receiver
from support.stack import KEY
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.local.embedded import kraft
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.resources.access import DEFAULT_PROJECT
from tidemill.schemas.resources.batch import TERMINAL, Batch
from tidemill.sealing.wrapping import new_key_text

EVENTS = int(os.environ.get("LINES", "400"))
DOWN_SECONDS = float(os.environ.get("DOWN_SECONDS", "0"))
"""Least time that a receiver is down."""
KILLS = 5
SECONDS_MAX = WAIT_SECONDS_MAX + EVENTS / 5 + 4 * DOWN_SECONDS
"""The pauses of an event that fails three times beside the down-time are some minutes."""

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(1800 + 2 * SECONDS_MAX)]
TYPES = [f"batch.{status}" for status in sorted(TERMINAL)]


@pytest.fixture(scope="module")
def fleet(kafka, tmp_path_factory):
    """An api and two processes of webhooks."""
    folder = tmp_path_factory.mktemp("webhooks")
    keys = folder / "encryption_keys"
    keys.write_text(new_key_text())
    environ = {
        "TIDEMILL_KAFKA": kafka,
        "TIDEMILL_WEBHOOK_ALLOW": "127.0.0.0/8",
        "TIDEMILL_ENCRYPTION_KEY_FILE": str(keys),
    }
    share_log(folder / "data" / "store")
    with Fleet(folder, environ, {}) as fleet:
        fleet.start("api", environ={"TIDEMILL_PORT": str(kraft.free_port())})
        for _ in range(2):
            fleet.start("webhooks")
        yield fleet


@pytest.fixture(scope="module")
def client(fleet):
    """OpenAI's client."""
    with openai.OpenAI(base_url=fleet.url(fleet.members[0]), api_key=KEY, max_retries=5) as client:
        yield client


def node_receiver(calls):
    """A receiver with the TypeScript SDK."""
    node = sdk.node("24.19.0", "openai7")
    script = shutil.copy(sdk.NODE_SOURCES / "webhooks.mjs", node.folder)
    return Receiver(calls, lambda: [str(node.binary), str(script)])


def ended(number, at):
    """The last record of a batch, as results writes it."""
    status = sorted(TERMINAL)[number % len(TERMINAL)]
    batch = Batch(
        id=ids.new_batch_id(), endpoint="/v1/embeddings", input_file_id="file-1", completion_window="24h",
        status=status, created_at=at - 1, expires_at=at + 86_400, **{f"{status}_at": at},
    )  # fmt: skip
    return BatchRecord(project=DEFAULT_PROJECT, batch=batch)


async def publish(kafka, records):
    """Append them to the topic of batches, the same record twice now and then."""
    async with AIOKafkaProducer(bootstrap_servers=kafka.split(","), linger_ms=20) as producer:
        for number, record in enumerate(records):
            for _ in range(1 + (number % 10 == 0)):
                await producer.send(topics.BATCHES.name, codec.encode(record), key=record.batch.id.encode())
        await producer.flush()


def arrived(receiver):
    """The events that the receiver has taken, by batch."""
    return {call["batch"]: call["type"] for call in receiver.calls() if call["status"] == 200}


@pytest.mark.e2e
def test_up_runs_the_stage(stack):
    """With its own rights in the log, a key file, and no private network that it may reach."""
    with openai.OpenAI(base_url=stack.api, api_key=KEY, max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="private"):
            client.webhooks.create(name="a", url="https://127.0.0.1/", event_types=TYPES)
        made = client.webhooks.create(name="a", url="https://does-not-exist.invalid/", event_types=TYPES)
        batch = client.batches.create(
            input_file_id="file-unknown", endpoint="/v1/embeddings", completion_window="24h"
        )
        path = f"/webhook_endpoints/{made.id}/deliveries"

        def failing():
            found = client.get(path, cast_to=object)["data"]
            return found if found and found[0]["last_attempt"] else None

        (found,) = wait_until(failing, "an attempt")
        assert (found["batch_id"], found["event_type"]) == (batch.id, "batch.failed")
        assert found["last_attempt"]["error"] == "connection"
        assert client.webhooks.retrieve(made.id).tidemill["failing_since"]
        client.webhooks.delete(made.id)
        wait_until(lambda: stack.is_ready("webhooks"), "readiness of the stage")


def test_every_event_arrives_whatever_is_killed(kafka, fleet, client, tmp_path):
    """The receivers fail three calls in ten, one is killed and is down; api and stage are killed five times."""
    began = time.monotonic()
    with Receiver(tmp_path / "python") as python, node_receiver(tmp_path / "node") as node, ExitStack() as made:
        secrets = []
        for receiver in (python, node):
            endpoint = client.webhooks.create(name="test", url=receiver.url, event_types=TYPES)
            made.callback(client.webhooks.delete, endpoint.id)
            secrets.append(endpoint.signing_secret)
            receiver.start(endpoint.signing_secret, failing=0.3)
        records = [ended(number, endpoint.created_at + 1) for number in range(EVENTS)]
        wanted = {record.batch.id: f"batch.{record.batch.status}" for record in records}
        for kill in range(KILLS):
            asyncio.run(publish(kafka, records[kill::KILLS]))
            before = len(arrived(node))
            wait_until(lambda before=before: len(arrived(node)) > before, "some events", seconds_max=SECONDS_MAX)
            for member in fleet.members:
                if member.runs:
                    fleet.kill(member)
            if kill == 1:
                python.kill()
                up_at = time.monotonic() + DOWN_SECONDS
            fleet.tend()
            if kill == 3:
                wait_until(
                    lambda up_at=up_at: time.monotonic() >= up_at, "the down-time", seconds_max=DOWN_SECONDS + 1
                )
                python.start(secrets[0], failing=0.3)
        for receiver in (python, node):
            wait_until(
                lambda receiver=receiver: arrived(receiver) == wanted, "all events", seconds_max=SECONDS_MAX
            )
            calls = receiver.calls()
            assert {call["error"] for call in calls} == {None}
            assert len({(call["id"], call["event"], call["batch"]) for call in calls}) == EVENTS
            assert {call["id"] == call["event"] for call in calls} == {True}
            taken = sum(call["status"] == 200 for call in calls)
            sys.stdout.write(
                f"{EVENTS:,} events in {time.monotonic() - began:,.0f} s: {len(calls):,} calls, all signed, "
                f"{len(calls) - taken:,} answered 500, {taken - EVENTS:,} events taken once more\n"
            )
        fleet.url(next(member for member in fleet.members if member.stage == "api" and member.runs))


def test_the_sdk_manages_endpoints(client, tmp_path):
    """Create, list, retrieve, update, rotate with an overlap and without, test, resend, delete."""
    assert sorted(client.webhooks.event_types.list().data) == TYPES
    with Receiver(tmp_path / "calls") as receiver:
        made = client.webhooks.create(name="a", url=receiver.url, event_types=["batch.failed", "batch.failed"])
        other = client.webhooks.create(name="b", url=receiver.url, event_types=TYPES)
        assert made.event_types == ["batch.failed"]
        assert made.signing_secret_hint.endswith(made.signing_secret[-4:])
        assert [found.id for found in client.webhooks.list(limit=1)] == [other.id, made.id]
        renamed = client.webhooks.update(made.id, name="c", event_types=["batch.expired"])
        assert (renamed.name, renamed.url, renamed.event_types) == ("c", receiver.url, ["batch.expired"])
        assert client.webhooks.retrieve(made.id) == renamed
        for keeps_old in (True, False):
            before, made = (
                made,
                client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=keeps_old),
            )
            for secret, is_valid in ((before.signing_secret, keeps_old), (made.signing_secret, True)):
                receiver.start(secret)
                send_sample(client, made.id, receiver)
                assert (receiver.calls()[-1]["error"] is None) == is_valid
                receiver.kill()
        with pytest.raises(openai.BadRequestError, match="connection"):
            client.webhooks.test(made.id, event_type="batch.failed")
        for found in (made, other):
            assert client.webhooks.delete(found.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.webhooks.retrieve(made.id)
        assert not client.webhooks.list().data


def send_sample(client, endpoint_id, receiver):
    """Send a sample event, once the receiver is there."""
    number = len(receiver.calls())

    def sent():
        try:
            return client.webhooks.test(endpoint_id, event_type="batch.failed")
        except openai.BadRequestError:
            return None

    found = wait_until(sent, "a reply of the receiver")
    assert (found.status_code, found.webhook_endpoint_id) == (200, endpoint_id)
    assert len(receiver.calls()) > number


def test_a_delivery_is_listed_and_sent_again(kafka, client, tmp_path):
    """By the routes beyond OpenAI's; the second call has the same id."""
    with Receiver(tmp_path / "calls") as receiver:
        made = client.webhooks.create(name="a", url=receiver.url, event_types=["batch.completed"])
        receiver.start(made.signing_secret)
        asyncio.run(publish(kafka, [record := ended(1, made.created_at)]))
        path = f"/webhook_endpoints/{made.id}/deliveries"

        def listed(state):
            found = client.get(f"{path}?state={state}", cast_to=object)["data"]
            return found if len(found) == 1 else None

        (found,) = wait_until(lambda: listed("succeeded"), "the end of the delivery")
        assert found["batch_id"] == record.batch.id
        assert found["last_attempt"]["status_code"] == 200
        before = len(receiver.calls())
        client.post(f"{path}/{found['id']}/resend", cast_to=object)
        wait_until(lambda: len(receiver.calls()) > before, "the second call")
        assert {call["event"] for call in receiver.calls()} == {found["event_id"]}
        client.webhooks.delete(made.id)


@pytest.fixture
def tidemill(client):
    """Run a command that has to end with this code; returns its stdout, or its stderr if it fails."""

    def run(*words, code=0):
        command = [sys.executable, "-m", "tidemill", *words, "--base-url", str(client.base_url), "--api-key", KEY]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code else done.stdout

    return run


def test_the_commands_manage_endpoints(client, tidemill, tmp_path):
    """As a user runs them: secrets on stdout, tables, JSON, exit codes."""
    with Receiver(tmp_path / "calls") as receiver:
        secret = tidemill("webhooks", "create", receiver.url, "--event", "batch.failed", "--name", "mine").strip()
        (found,) = (json.loads(line) for line in tidemill("webhooks", "list").splitlines())
        assert (found["name"], found["url"], found["event_types"]) == ("mine", receiver.url, ["batch.failed"])
        endpoint_id = found["id"]
        tidemill("webhooks", "test", endpoint_id, code=2)
        receiver.start(secret)
        send_sample(client, endpoint_id, receiver)
        tidemill("webhooks", "test", endpoint_id, "--event", "batch.expired")
        assert [call["error"] for call in receiver.calls()] == [None, None]
        listed = [json.loads(line) for line in tidemill("webhooks", "deliveries", endpoint_id).splitlines()]
        assert {each["state"] for each in listed} == {"succeeded", "failed"}
        ended = next(each for each in listed if each["event_type"] == "batch.expired")
        tidemill("webhooks", "resend", endpoint_id, ended["id"])
        wait_until(lambda: len(receiver.calls()) == 3, "the second call of the event")
        assert tidemill("webhooks", "rotate", endpoint_id, "--keep-old").strip() != secret
        tidemill("webhooks", "update", endpoint_id, "--name", "other")
        assert json.loads(tidemill("webhooks", "show", endpoint_id))["name"] == "other"
        tidemill("webhooks", "delete", endpoint_id)
        tidemill("webhooks", "show", endpoint_id, code=2)


def test_a_batch_calls_its_own_url(fleet, client, tidemill, tmp_path):
    """A run of a file for an unknown model, from the command to the call at the end of its batch."""
    fleet.start("ingest")
    fleet.start("results")
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": "unknown", "input": "a"},
    }
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    with Receiver(tmp_path / "calls") as receiver:
        run = ("run", str(tmp_path / "in.jsonl"), "--callback", receiver.url)
        assert "webhooks rotate callback` makes one" in tidemill(*run, code=2)
        receiver.start(tidemill("webhooks", "rotate", "callback").strip())
        tidemill(*run, code=4)
        (batch,) = client.batches.list(limit=1).data
        assert batch.tidemill["callback_url"] == receiver.url
        (call,) = wait_until(receiver.calls, "the call")
        assert (call["batch"], call["type"], call["error"]) == (batch.id, "batch.failed", None)
        tidemill("webhooks", "delete", "callback")
