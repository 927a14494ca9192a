"""Each process of the stack is killed once in the middle of a batch: the batch completes, exact.

Invariant 5: restarting is enough, and calls made twice are at most those in flight at the kill.
"""

import hashlib
import json

import pytest
from openai import OpenAI
from support.backend import Behaviour
from support.stack import KEY, Stack
from support.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

LINES = 10_000
IN_FLIGHT = 64
KILL_AFTER = 2_000
"""Calls made when the process is killed."""
COMPLETE_SECONDS_MAX = 120.0
FAILS_EVERY = 97


def answers(body, nth):
    """Every 97th line is refused; an answer takes a moment, so that calls are in flight at the kill."""
    del nth
    number = int(body["messages"][0]["content"])
    return Behaviour(status=400 if number % FAILS_EVERY == 0 else 200, latency_seconds=0.02)


def lines():
    for number in range(LINES):
        body = {"model": "chat", "messages": [{"role": "user", "content": str(number)}]}
        line = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        yield json.dumps(line).encode() + b"\n"


@pytest.fixture(scope="module")
def killable(tmp_path_factory, inference):
    with Stack(tmp_path_factory.mktemp("killable"), inference.models("chat", max_in_flight=IN_FLIGHT)) as stack:
        yield stack


@pytest.fixture(scope="module")
def input_file(killable):
    client = OpenAI(base_url=killable.api, api_key=KEY)
    return client.files.create(file=("in.jsonl", b"".join(lines())), purpose="batch").id


def numbers(content):
    return [int(json.loads(line)["custom_id"].removeprefix("line-")) for line in content.splitlines()]


def check(client, batch):
    """Both files hold every line once and in order, and the receipt is true."""
    assert batch.status == "completed"
    receipt = batch.tidemill["receipt"]
    output = client.files.content(batch.output_file_id).content
    errors = client.files.content(batch.error_file_id).content
    refused = [number for number in range(LINES) if number % FAILS_EVERY == 0]
    assert numbers(errors) == refused
    assert numbers(output) == [number for number in range(LINES) if number % FAILS_EVERY]
    for content, part in ((output, "output"), (errors, "errors")):
        assert hashlib.sha256(content).hexdigest() == receipt[part]["sha256"]
    assert (receipt["lines"], receipt["missing"], receipt["double"]) == (LINES, 0, 0)
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (LINES, LINES - len(refused), len(refused))
    usage = [json.loads(line)["response"]["body"]["usage"] for line in output.splitlines()]
    assert batch.usage.total_tokens == sum(tokens["total_tokens"] for tokens in usage)


@pytest.mark.parametrize("stage", ["processors", "results", "ingest", "api", "kafka"])
def test_a_killed_process_costs_nothing(stage, killable, backend, input_file):
    """`kill -9` of one process in the middle of 10,000 lines: nothing lost, nothing double."""
    backend.reset(answers)
    client = OpenAI(base_url=killable.api, api_key=KEY, max_retries=10)
    batch = client.batches.create(
        input_file_id=input_file, endpoint="/v1/chat/completions", completion_window="24h"
    )
    wait_until(lambda: backend.calls >= KILL_AFTER, f"{KILL_AFTER} calls")
    killed = killable.kill(stage)
    assert backend.calls < LINES, "the kill came too late to prove anything"
    wait_until(
        lambda: client.batches.retrieve(batch.id).status not in ("validating", "in_progress", "finalizing"),
        f"end of the batch after the kill of {stage}",
        seconds_max=COMPLETE_SECONDS_MAX,
    )
    check(client, client.batches.retrieve(batch.id))
    wait_until(lambda: set(killable.pids(stage)).isdisjoint(killed), f"{stage} is back")
    repeats_max = IN_FLIGHT + IN_FLIGHT // 4 if stage == "processors" else 0
    assert backend.repeats <= repeats_max
