"""The same lines give the same output by every way in, except for ids that a batch gives its lines.

A new way is a function that takes the service and the lines, runs them as one batch, and returns its id. Add it to
`WAYS` to compare it with the others.
"""

import asyncio
import datetime as dt
import json
import re

import httpx
import pytest
from aiokafka import AIOKafkaProducer
from openai import OpenAI
from support.backend import Behaviour
from support.stack import KEY
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.schemas import ids
from tidemill.schemas.log import topics

pytestmark = pytest.mark.e2e

LINES = 5_000
FAILS_EVERY = 83
CHAT = "/v1/chat/completions"
STREAM = b"ways"
RECORD_LINES = 2
"""Of the stream: two of the large lines would still fit."""
APPEND_LINES = 500
OWN_ID = re.compile(rb'"id":"batch_req_[0-9a-f]+",')
SECONDS = re.compile(rb'"seconds":[0-9.]+')
REQUEST_ID = re.compile(rb'"request_id":"[^"]*"')


def answers(body, nth):
    """Some lines are refused."""
    del nth
    number = int(body["messages"][0]["content"].split()[-1])
    return Behaviour(status=400 if number % FAILS_EVERY == 0 else 200)


def text(number):
    """The text of a line; every thousandth is too large for a record of the log."""
    return f"{'x' * 300_000 if number % 1_000 == 7 else 'ä'} {number}"


def make(folder):
    """The lines, as a file."""
    path = folder / "in.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(LINES):
            body = {"model": "chat", "messages": [{"role": "user", "content": text(number)}], "seed": 1.50}
            line = {"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": body}
            file.write(json.dumps(line, ensure_ascii=number % 2 == 0) + "\n")
    return path


class Service:
    """The service as a client sees it."""

    def __init__(self, stack):
        self.sdk = OpenAI(base_url=stack.api, api_key=KEY)
        self.kafka = stack.clients("producers")
        self.http = httpx.Client(
            base_url=stack.api, headers={"authorization": f"Bearer {KEY}"}, timeout=WAIT_SECONDS_MAX
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sdk.close()
        self.http.close()

    def finished(self, batch_id):
        """The batch, once it is over."""
        wait_until(
            lambda: self.sdk.batches.retrieve(batch_id).status == "completed",
            "end of the batch",
        )
        return self.sdk.batches.retrieve(batch_id)

    def made(self, path, **fields):
        """Request a batch of lines that ran before."""
        answer = self.http.post(path, json=fields)
        assert answer.status_code == 200, answer.text
        return answer.json()


def by_rest(service, source):
    """Upload and create."""
    file = service.sdk.files.create(file=source, purpose="batch")
    return service.sdk.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h").id


def by_rerun(service, source):
    """Rerun a whole batch."""
    old = service.finished(by_rest(service, source))
    return service.made(f"/batches/{old.id}/rerun", lines="all")["id"]


def by_replay_of_the_log(service, source):
    """Replay a range of the topic, from before a batch to its end; a dry run finds it."""
    start = dt.datetime.now(dt.UTC).isoformat()
    service.finished(by_rest(service, source))
    wanted = {"model": "chat", "from": start, "to": dt.datetime.now(dt.UTC).isoformat()}
    plan = service.made("/replays", source=wanted, dry_run=True)
    assert (plan["lines"], plan["batches"], plan["lost_lines"]) == (LINES, 1, 0)
    assert (plan["is_too_large"], plan["endpoint"]) == (False, CHAT)
    return service.made("/replays", source=wanted)["id"]


def by_kafka(service, source):
    """A stream of a direct producer, some lines a record."""
    batch_id = asyncio.run(produced(service.kafka, source.read_bytes().splitlines()))
    wait_until(lambda: batch_id in {batch.id for batch in service.sdk.batches.list()}, "the stream's batch")
    return batch_id


async def produced(kafka, lines):
    """Send lines as a stream; returns the id of its batch."""
    key, ends = ("authorization", f"Bearer {KEY}".encode()), ("tidemill-end", b"true")
    async with AIOKafkaProducer(**kafka) as producer:
        coming = [
            await producer.send(topics.INTAKE.name, b"\n".join(some), key=STREAM, headers=[key])
            for some in (lines[start : start + RECORD_LINES] for start in range(0, len(lines), RECORD_LINES))
        ]
        await producer.send_and_wait(topics.INTAKE.name, b"", key=STREAM, headers=[key, ends])
    first = await coming[0]
    return ids.stream_batch_id(first.partition, first.offset)


def by_appends(service, source):
    """An open batch, some hundred lines an append, each sent twice."""
    made = service.made("/batches", endpoint=CHAT, completion_window="24h", open=True)
    requests, sequence = [], 0
    for line in source.read_text("utf-8").splitlines():
        requests.append(json.loads(line))
        if len(requests) == APPEND_LINES or len(line) > APPEND_LINES:
            sequence += 1
            for _ in range(2):
                service.made(f"/batches/{made['id']}/requests", sequence=sequence, requests=requests)
            requests = []
    sequence += 1
    service.made(f"/batches/{made['id']}/requests", sequence=sequence, requests=requests)
    return service.made(f"/batches/{made['id']}/seal", sequence=sequence)["id"]


WAYS = (by_rest, by_kafka, by_appends, by_rerun, by_replay_of_the_log)


def plain(content):
    """A file of results without the ids of its own batch and calls, and their times."""
    return SECONDS.sub(b'"seconds":0', REQUEST_ID.sub(b'"request_id":""', OWN_ID.sub(b"", content)))


def test_every_way_gives_the_same_bytes(stack, backend, tmp_path):
    """Output and errors of five thousand lines, in the order of the input."""
    backend.reset(answers)
    source, found = make(tmp_path), {}
    with Service(stack) as service:
        for way in WAYS:
            batch = service.finished(way(service, source))
            receipt = batch.tidemill["receipt"]
            assert (receipt["lines"], receipt["missing"], receipt["double"]) == (LINES, 0, 0), way.__name__
            files = (batch.output_file_id, batch.error_file_id)
            found[way] = [plain(service.sdk.files.content(file_id).content) for file_id in files]
            assert batch.usage.total_tokens > 0
    for way in WAYS:
        assert found[way] == found[by_rest], way.__name__
    names = [json.loads(line)["custom_id"] for line in found[by_rest][0].splitlines()]
    assert names == [f"line-{number}" for number in range(LINES) if number % FAILS_EVERY]
