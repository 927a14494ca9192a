"""The programs of docs/how-to/produce.md as printed, and `tidemill produce` that fails half-way."""

import asyncio
import base64
import os
import re
import secrets
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from openai import OpenAI
from support.batches import WINDOWS
from support.producing import END, is_over, line, lines_of, send, shown
from support.stack import KEPT, KEY, Stack
from support.waiting import until

from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import topic_configs
from tidemill.kafka.producer import partition_of
from tidemill.schemas import ids
from tidemill.schemas.log import topics

pytestmark = [pytest.mark.kafka, pytest.mark.e2e]

EXAMPLE_LINES = 500
OFFSETS_MAX = 20_000
"""More records than these tests send."""
SHORT_LINES = 1_500
LARGE_BYTES = 600_000
SMALL_RECORD_BYTES = 300_000
"""A record of short lines is smaller, that of the large line is not."""


def page():
    """The page with the examples."""
    return (Path(__file__).parents[2] / "docs" / "how-to" / "produce.md").read_text("utf-8")


def preparation():
    """The code that the page puts before each example."""
    (found,) = re.findall(r"```sh\n(.*?)```", page().partition("\n## ")[0], re.DOTALL)
    return found


def examples():
    """The examples by title: language and code; without those marked as not run."""
    found = re.findall(r"^## (.*?)$(.*?)^```(\w+)\n(.*?)^```$", page(), re.DOTALL | re.MULTILINE)
    return {title: (language, code) for title, text, language, code in found if "<!-- not run: " not in text}


def has_kcat():
    """Whether kcat is installed with a library whose SCRAM works with Kafka 4 (librdkafka 2.6.1)."""
    if (kcat := shutil.which("kcat")) is None:
        return False
    said = subprocess.run([kcat, "-V"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"librdkafka (\d+)\.(\d+)\.(\d+)", said)
    return found is not None and tuple(map(int, found.groups())) >= (2, 6, 1)


TITLES = [title for title in examples() if title != "kcat" or has_kcat()]


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
def begin(stack, tmp_path):
    """Starts the command; returns its process."""
    environ = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}

    async def begin(file, stream, *words):
        options = ["--stream", stream, "--data", str(stack.data), "--base-url", stack.api, "--api-key", KEY]
        argv = [sys.executable, "-m", "tidemill", "produce", str(file), *options, *words]
        return await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=PIPE, cwd=tmp_path, env=environ)

    return begin


@pytest.fixture
def produce(begin):
    """Runs the command to its end; returns its exit code, stdout and stderr."""

    async def run(file, stream, *words):
        process = await begin(file, stream, *words)
        out, err = await process.communicate()
        return process.returncode, out.decode().strip(), err.decode()

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


@pytest.fixture
def run_example(stack, tmp_path):
    """Runs an example after the first lines of the page, with an `in.jsonl` in its folder."""

    async def run(language, code):
        local = tmp_path / ".tidemill"
        local.mkdir()
        # A link might be another user's.
        (local / "run.json").write_bytes((stack.data / "run.json").read_bytes())
        (local / "kafka").symlink_to(stack.data / "kafka")
        (local / "api_key").write_text(KEY)
        (tmp_path / "example").write_text(code)
        command = preparation() + (code if language == "sh" else "python3 example")
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_") or name in KEPT
        }
        environ = kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "XDG_STATE_HOME": str(tmp_path / "state"),
        }
        return await asyncio.to_thread(
            subprocess.run, ["bash", "-euo", "pipefail", "-c", command],
            env=environ, capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip

    return run


def names(client, batch):
    return [found["custom_id"] for found in lines_of(client, batch.output_file_id)]


ALL = [f"id-{number}" for number in range(2 * SHORT_LINES)]


@pytest.mark.parametrize("title", TITLES)
async def test_the_examples_run_as_printed(title, client, run_example, tmp_path):
    """Each of docs/how-to/produce.md; kcat only if it is installed."""
    (tmp_path / "in.jsonl").write_bytes(b"".join(line(number) + b"\n" for number in range(EXAMPLE_LINES)))
    language, code = examples()[title]
    done = await run_example(language, code)
    assert done.returncode == 0, done.stderr
    (stream,) = set(re.findall(r"crawl-\d", code))
    (batch,) = await until(lambda: asyncio.to_thread(_batches, client, stream))
    batch = await shown(client, batch.id, is_over)
    assert (batch.status, batch.request_counts.completed) == ("completed", EXAMPLE_LINES)
    assert names(client, batch) == ALL[:EXAMPLE_LINES]
    # All clients choose the same partition: that of Kafka's Java client.
    partition = partition_of(stream, Settings().partitions)
    assert batch.id in {ids.stream_batch_id(partition, offset) for offset in range(OFFSETS_MAX)}


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("title", TITLES)
async def test_the_examples_fail_if_kafka_refuses_a_line(title, stack, client, allow, run_example):
    """They say so, and do not end the stream."""
    language, code = examples()[title]
    (printed,) = set(re.findall(r"crawl-\d", code))
    stream = f"{printed}-refused"
    await allow(SMALL_RECORD_BYTES)
    done = await run_example(language, code.replace(printed, stream))
    assert done.returncode != 0
    await allow()
    async with AIOKafkaProducer(**stack.clients("producers")) as producer:
        await send(producer, stream, [line(2 * SHORT_LINES)], END)

    def ended():
        return [batch for batch in _batches(client, stream) if is_over(batch)]

    # If the example had ended the stream, the last line would be in another batch.
    (batch,) = await until(lambda: asyncio.to_thread(ended))
    assert names(client, batch)[-1] == f"id-{2 * SHORT_LINES}"


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


@pytest.mark.parametrize("is_over_by_then", [False, True])
async def test_after_a_cancel_all_lines_are_another_batch(client, produce, tmp_path, is_over_by_then):
    """Also while the cancelled batch still ends; ingest would discard them until the stream ends."""
    path, stream = tmp_path / "short.jsonl", f"cancelled-{is_over_by_then}"
    path.write_bytes(b"\n".join(map(line, range(3))))
    code, first, err = await produce(path, stream, "--no-end")
    assert code == 0, err
    await asyncio.to_thread(client.batches.cancel, first)
    await shown(client, first, is_over if is_over_by_then else lambda found: found.status.startswith("cancel"))
    code, second, err = await produce(path, stream)
    assert code == 0, err
    assert second != first
    batch = await shown(client, second, is_over)
    assert (batch.status, names(client, batch)) == ("completed", ALL[:3])


async def test_no_line_runs_twice_while_ingest_is_behind(stack, client, begin, produce, tmp_path):
    """A transaction holds ingest back, also when the same command begins; Kafka has the end of the first one."""
    path = tmp_path / "short.jsonl"
    path.write_bytes(b"\n".join(map(line, range(3))))
    async with AIOKafkaProducer(**stack.clients(), transactional_id="hold") as holder:
        await holder.begin_transaction()
        await holder.send_and_wait(
            topics.INTAKE.name, b"", partition=partition_of("behind", Settings().partitions)
        )
        code, out, err = await produce(path, "behind")
        assert (code, out) == (7, ""), err
        second = await begin(path, "behind")
        while b"waiting until the service shows" not in (said := await second.stderr.readline()):
            assert said, "it has ended"
        await holder.abort_transaction()
    out, err = await second.communicate()
    assert second.returncode == 0, err
    (batch,) = _batches(client, "behind")
    assert out.decode().strip() == batch.id
    batch = await shown(client, batch.id, is_over)
    assert names(client, batch) == ALL[:3]


async def test_a_file_may_be_sent_in_pieces(client, produce, tmp_path):
    """The numbers of the next file are above those of the one before; equal lines are duplicates."""
    path = tmp_path / "piece.jsonl"
    found = set()
    for start in (0, 2, 2):
        path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(line(number) for number in range(start, start + 2)))
        code, out, err = await produce(path, "pieces", "--no-end")
        assert code == 0, err
        found.add(out)
    (batch_id,) = found
    batch = await shown(client, batch_id, lambda found: found.request_counts.total == 6)
    assert batch.tidemill["sequence"] > 0
    batch = await shown(client, batch_id, lambda found: found.request_counts.completed == 4)
    assert batch.request_counts.failed == 2


def _batches(client, stream):
    return [batch for batch in client.batches.list() if batch.tidemill.get("stream") == stream]
