"""`tidemill produce` that fails half-way: the same command goes on, and no line runs twice."""

import asyncio
import base64
import os
import secrets
import subprocess
import sys

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from openai import OpenAI
from support.batches import WINDOWS
from support.producing import END, is_over, line, lines_of, send, shown
from support.stack import KEY, Stack
from support.waiting import until

from tidemill.kafka.admin import topic_configs
from tidemill.schemas.log import topics

pytestmark = [pytest.mark.kafka, pytest.mark.e2e]

SHORT_LINES = 1_500
LARGE_BYTES = 600_000
SMALL_RECORD_BYTES = 300_000
"""A record of short lines is smaller, that of the large line is not."""


@pytest.fixture(scope="module")
def stack(inference, tmp_path_factory):
    """An installation for streams."""
    with Stack(
        tmp_path_factory.mktemp("produce"), inference.models("chat"), {"TIDEMILL_WINDOWS": WINDOWS}
    ) as stack:
        yield stack


@pytest.fixture
def client(stack):
    with OpenAI(base_url=stack.api, api_key=KEY) as client:
        yield client


@pytest.fixture
async def allow(stack):
    """Sets the size of a record that the broker accepts in the intake; without one, the former size."""
    (name,), kafka = [topics.INTAKE.name], stack.cluster()
    before = (await topic_configs(kafka, [name]))[name]
    admin = AIOKafkaAdminClient(**stack.clients())
    await admin.start()

    async def allow(size=None):
        wanted = before if size is None else before | {"max.message.bytes": str(size)}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=wanted)])

        async def is_set():
            return (await topic_configs(kafka, [name]))[name] == wanted

        await until(is_set, "the new value")

    yield allow
    await allow()
    await admin.close()


@pytest.fixture
def produce(stack, tmp_path):
    """Runs the command to its end; returns its exit code, stdout and stderr."""
    environ = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}

    async def run(file, stream, *words):
        options = ["--stream", stream, "--data", str(stack.data), "--base-url", stack.api, "--api-key", KEY]
        argv = [sys.executable, "-m", "tidemill", "produce", str(file), *options, *words]
        done = await asyncio.to_thread(
            subprocess.run, argv, capture_output=True, text=True, cwd=tmp_path, env=environ, check=False
        )
        return done.returncode, done.stdout.strip(), done.stderr

    return run


@pytest.fixture
def source(tmp_path):
    """A file with a line in its middle that is larger than the others, and does not shrink."""
    large = base64.b64encode(secrets.token_bytes(LARGE_BYTES)).decode()
    lines = [
        *map(line, range(SHORT_LINES)),
        line(SHORT_LINES, user=large),
        *map(line, range(SHORT_LINES + 1, 2 * SHORT_LINES)),
    ]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


def names(client, batch):
    return [found["custom_id"] for found in lines_of(client, batch.output_file_id)]


ALL = [f"id-{number}" for number in range(2 * SHORT_LINES)]


async def test_the_same_command_goes_on(client, allow, produce, source):
    """In the batch that it has begun, which gets each line once."""
    await allow(SMALL_RECORD_BYTES)
    code, out, err = await produce(source, "half")
    assert (code, out) == (7, ""), err
    (batch,) = await until(lambda: asyncio.to_thread(_batches, client, "half"))
    assert f"Kafka has 1,500 lines of 3,000 of {source}, in {batch.id};" in err
    await shown(client, batch.id, lambda found: found.request_counts.total == SHORT_LINES)
    await allow()
    code, out, err = await produce(source, "half")
    assert (code, out) == (0, batch.id), err
    assert f"{batch.id} has 1,500 lines of 3,000 of {source} already." in err
    batch = await shown(client, batch.id, is_over)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2 * SHORT_LINES, 0)
    assert names(client, batch) == ALL


async def test_the_rest_of_a_sealed_stream_is_another_batch(stack, client, allow, produce, source):
    """Lines that have run are not sent again."""
    await allow(SMALL_RECORD_BYTES)
    code, _, err = await produce(source, "cut")
    assert code == 7, err
    (batch,) = await until(lambda: asyncio.to_thread(_batches, client, "cut"))
    async with AIOKafkaProducer(**stack.clients("producers")) as producer:
        await send(producer, "cut", [], END)
    first = await shown(client, batch.id, is_over)
    await allow()
    code, out, err = await produce(source, "cut")
    assert code == 0, err
    assert f"{first.id} has 1,500 lines of 3,000 of {source} already; the others go to another batch" in err
    second = await shown(client, out, is_over)
    assert second.id != first.id
    assert names(client, first) + names(client, second) == ALL


async def test_a_file_may_be_sent_in_pieces(client, produce, tmp_path):
    """The numbers of the next file are above those of the one before; equal lines are duplicates."""
    path = tmp_path / "piece.jsonl"
    ids = set()
    for start in (0, 2, 2):
        path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(line(number) for number in range(start, start + 2)))
        code, out, err = await produce(path, "pieces", "--no-end")
        assert code == 0, err
        ids.add(out)
    (batch_id,) = ids
    batch = await shown(client, batch_id, lambda found: found.request_counts.total == 6)
    assert batch.tidemill["sequence"] > 0
    batch = await shown(client, batch_id, lambda found: found.request_counts.completed == 4)
    assert batch.request_counts.failed == 2


def _batches(client, stream):
    return [batch for batch in client.batches.list() if batch.tidemill.get("stream") == stream]
