"""A missing wrapping key: the batches whose keys it wraps wait and say why, and the others go on."""

import base64
import json
import os

import pytest
from openai import OpenAI
from support.backend import Behaviour
from support.stack import KEY, Stack
from support.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

LINES = 300
CHAT = "/v1/chat/completions"
ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}}]}
PARTITIONS = {"TIDEMILL_PARTITIONS": "1"}
"""So that all batches share them."""


def created(client, name, lines):
    """A batch, and its name in each of its lines."""
    body = {"model": "chat", "messages": [{"role": "user", "content": name}]}
    text = b"\n".join(
        json.dumps({"custom_id": f"c-{number}", "method": "POST", "url": CHAT, "body": body}).encode()
        for number in range(lines)
    )
    file = client.files.create(file=("in.jsonl", text), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h").id


def test_the_others_go_on(tmp_path, inference, backend):
    """In processors and in results; once the key is back, its own batches go on, too, without a restart."""
    slow = [True]

    def answers(body, nth):
        del nth
        is_first = slow[0] and body["messages"][0]["content"] == "first"
        return Behaviour(latency_seconds=0.2 if is_first else 0.0, body=json.dumps(ANSWER).encode())

    backend.reset(answers)
    environ = {"TIDEMILL_ENCRYPT_LOG": "true", "TIDEMILL_PART_AGE_SECONDS": "1", **PARTITIONS}
    data = tmp_path / "data"
    stack = Stack(data, inference.models("chat", max_in_flight=4), environ)
    keys = data / "encryption_keys"

    def of(batch_id):
        client = OpenAI(base_url=stack.api, api_key=KEY, max_retries=10)
        return client, client.batches.retrieve(batch_id)

    def ended(batch_id):
        wait_until(lambda: of(batch_id)[1].status == "completed", what=f"end of {batch_id}")

    with stack:
        first = created(OpenAI(base_url=stack.api, api_key=KEY, max_retries=10), "first", LINES)
        wait_until(
            lambda: of(first)[1].request_counts.completed > 10,
            what="some of its lines",
        )
    before = keys.read_bytes()
    keys.write_bytes(base64.b64encode(os.urandom(32)) + b"\n")
    slow[0] = False
    with stack:
        other = created(OpenAI(base_url=stack.api, api_key=KEY, max_retries=10), "other", LINES)
        ended(other)
        wait_until(
            lambda: "key" in [why["reason"] for why in of(first)[1].tidemill["waiting"]],
            what="the batch that says why it waits",
        )
        client, batch = of(first)
        assert batch.status == "in_progress"
        assert batch.request_counts.completed < LINES
        keys.write_bytes(keys.read_bytes() + before)
        ended(first)
        client, batch = of(first)
        assert batch.tidemill["waiting"] == []
        assert client.files.content(batch.output_file_id).text.count('"custom_id":"c-') == LINES
