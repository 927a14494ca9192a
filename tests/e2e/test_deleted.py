"""Deleted batches are gone: from the store, from the log, and from everything that could restore them.

The log is encrypted; so the whole way of a batch is tried here with keys, too.
"""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from aiokafka import AIOKafkaConsumer
from openai import OpenAI
from support.backend import Behaviour
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.processors.outcomes.batching import LINE_BYTES_MAX
from tidemill.schemas.log import topics

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

LINES = 120
PROMPT, ANSWER = "canary-prompt-4711", "canary-answer-0815"
CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def answers(body, nth):
    """Each answer has a canary; the third is too large for a record."""
    del nth
    number = int(body["messages"][0]["content"].split()[-1])
    text = ANSWER + "x" * (LINE_BYTES_MAX if number == 3 else 10)
    reply = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}], "usage": USAGE}
    return Behaviour(status=400 if number % 7 == 0 else 200, body=json.dumps(reply).encode())


@pytest.fixture
def place(tmp_path_factory, inference, backend):
    """An installation whose log is encrypted."""
    backend.reset(answers)
    environ = {"TIDEMILL_ENCRYPT_LOG": "true", "TIDEMILL_PART_BYTES": "65536"}
    data = tmp_path_factory.mktemp("deleted") / "data"
    with Stack(data, inference.models("chat", max_in_flight=16), environ) as stack:
        yield stack


def lines():
    """Requests that each have a canary."""
    for number in range(LINES):
        body = {"model": "chat", "messages": [{"role": "user", "content": f"{PROMPT} {number}"}]}
        yield json.dumps({"custom_id": f"c-{number}", "method": "POST", "url": CHAT, "body": body}).encode()


def finished(stack):
    """A batch that is completed."""
    client = OpenAI(base_url=stack.api, api_key=KEY, max_retries=10)
    file = client.files.create(file=("in.jsonl", b"\n".join(lines())), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    wait_until(lambda: client.batches.retrieve(made.id).status == "completed", what="the end")
    batch = client.batches.retrieve(made.id)
    output = client.files.content(batch.output_file_id).text
    assert output.count(ANSWER) == batch.request_counts.completed == LINES - len(range(0, LINES, 7))
    return batch


def records(stack):
    """All records of all topics: topic, key, value with headers."""

    async def read():
        consumer = AIOKafkaConsumer(**stack.clients(), auto_offset_reset="earliest", enable_auto_commit=False)
        await consumer.start()
        try:
            found = []
            names = [name for name in await consumer.topics() if name.startswith("tidemill")]
            consumer.subscribe(names)
            await consumer.getmany(timeout_ms=1000)
            parts = sorted(consumer.assignment())
            await consumer.seek_to_beginning(*parts)
            ends = await consumer.end_offsets(parts)
            while any([await consumer.position(part) < end for part, end in ends.items()]):
                for part, got in (await consumer.getmany(timeout_ms=500)).items():
                    found += [(part.topic, got_.key or b"", got_.value, got_.headers) for got_ in got]
            return found
        finally:
            await consumer.stop()

    return asyncio.run(read())


def objects_with(stack, *needles):
    """Keys of the store's objects that hold one of these texts."""
    folder = Path(stack.data) / "store"
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = [path for path in files if any(needle.encode() in path.read_bytes() for needle in needles)]
    return sorted(str(path.relative_to(folder)) for path in found)


def command(stack, *words):
    """A command of the operator: its exit code and its output."""
    environ = stack.environ_of_all | {"TIDEMILL_ENCRYPT_LOG": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "tidemill", *words, "--data", str(stack.data)],
        env=environ, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def http(stack):
    """Plain HTTP."""
    return httpx.Client(base_url=stack.api, headers={"authorization": f"Bearer {KEY}"}, timeout=WAIT_SECONDS_MAX)


def test_deleted_batches_stay_deleted(place):
    """The log has nothing of a batch in clear text; after its deletion no key decrypts it, also after kills."""
    batch, other = finished(place), finished(place)
    read = records(place)
    touched = {topic for topic, *_ in read}
    assert {topics.OUTCOMES.name, topics.SECRETS.name, topics.express("chat").name} <= touched
    for topic, key, value, headers in read:
        shown = b"".join([key, value or b"", *(content or b"" for _, content in headers)])
        assert PROMPT.encode() not in shown, topic
        assert ANSWER.encode() not in shown, topic
    large = objects_with(place, PROMPT, ANSWER)
    assert not [key for key in large if not key.startswith("files/")]
    assert list((Path(place.data) / "store").rglob(f"results-large/{batch.id}/*"))
    assert command(place, "rebuild", batch.id)[0] == 0
    source = {"model": "chat", "from": "2020-01-01T00:00:00Z"}
    with http(place) as plain:
        plan = plain.post("/replays", json={"source": source, "dry_run": True}).json()
        assert (plan["lines"], plan["skipped_lines"]) == (2 * LINES, 0)
        assert plain.delete(f"/batches/{batch.id}").status_code == 200
        place.kill("results")
        assert plain.get(f"/batches/{batch.id}").status_code == 404
        gone = [f"files/{file_id}" for file_id in (batch.output_file_id, batch.error_file_id)]
        wait_until(
            lambda: not [key for key in objects_with(place, ANSWER) if key in gone or batch.id in key],
            what="the removal of its objects",
        )
        wait_until(lambda: _is_destroyed(place, batch.id), what="its key's end")
        assert plain.get(f"/batches/{batch.id}").status_code == 404
        wait_until(
            lambda: not [path for path in (Path(place.data) / "store").rglob("*") if batch.id in str(path)],
            what="the end of what lies under its id",
        )
        plan = plain.post("/replays", json={"source": source, "dry_run": True}).json()
        assert (plan["lines"], plan["skipped_lines"]) == (LINES, LINES)
        assert "the batch is deleted" in command(place, "rebuild", batch.id)[1]
        # Delete the other batch's input: the batch stays, but its lines in the log become unreadable.
        assert plain.delete(f"/files/{other.input_file_id}").status_code == 200
        assert plain.get(f"/batches/{other.id}").status_code == 200
        wait_until(lambda: _is_destroyed(place, other.id), what="the other key's end")
        refused = plain.post("/replays", json={"source": source})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "lines_deleted")
        assert "key_destroyed" in command(place, "rebuild", other.id)[1]
        assert ANSWER in plain.get(f"/files/{other.output_file_id}/content").text


def _is_destroyed(stack, batch_id):
    """Whether the last record of each of a batch's keys is a tombstone."""
    last = {key: value for topic, key, value, _ in records(stack) if topic == topics.SECRETS.name}
    keys = [value for key, value in last.items() if key.startswith(f"{batch_id}/".encode())]
    return bool(keys) and all(value is None for value in keys)
