"""Lines that share a call (`inputs_per_call`), as a client sees them."""

import base64
import json
import struct

import pytest
from openai import OpenAI
from openai.types import Completion, CreateEmbeddingResponse
from support.backend import WAIT_SECONDS, Backend, Behaviour
from support.stack import KEY, Stack
from support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

LINES = 50
INPUTS = 8


def rule(body, nth):
    """The server takes up to `INPUTS` inputs, and refuses any call with a bad one."""
    del nth
    given = body.get("input", body.get("prompt"))
    inputs = given if isinstance(given, list) else [given]
    assert len(inputs) <= INPUTS
    return Behaviour(status=400 if any("bad" in str(one) for one in inputs) else 200)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Backend(rule) as backend:
        models = {"m": {"backends": [{"url": backend.url}], "max_in_flight": 2, "inputs_per_call": INPUTS}}
        data = tmp_path_factory.mktemp("joined") / "data"
        with Stack(data, models) as stack, OpenAI(base_url=stack.api, api_key=KEY) as client:
            yield client, backend


def created(client, endpoint, bodies):
    """A new batch."""
    lines = [
        {"custom_id": str(n), "method": "POST", "url": endpoint, "body": {"model": "m", **body}}
        for n, body in enumerate(bodies)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


async def ended(client, endpoint, bodies):
    """Run a batch; returns it, and the lines of both files by their `custom_id`."""
    batch = created(client, endpoint, bodies)
    await until(lambda: client.batches.retrieve(batch.id).status == "completed", "the batch's end")
    batch = client.batches.retrieve(batch.id)
    found = {}
    for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
        found |= {line["custom_id"]: line for line in map(json.loads, client.files.content(file_id).iter_lines())}
    return batch, [found[str(n)] for n in range(len(bodies))]


async def test_calls_of_a_cancelled_batch_are_aborted(served):
    """Each call ends for all of its lines; the next batch gets both places."""
    client, backend = served
    backend.reset(lambda body, _: Behaviour(latency_seconds=WAIT_SECONDS if "wait" in str(body) else 0))
    held = created(client, "/v1/embeddings", [{"input": f"wait {n}"} for n in range(LINES)])
    await until(lambda: backend.in_flight == 2, "calls")
    client.batches.cancel(held.id)
    await until(lambda: backend.in_flight == 0, "their end")
    await until(lambda: client.batches.retrieve(held.id).status == "cancelled", "the batch's end")
    assert client.batches.retrieve(held.id).request_counts.completed == 0
    assert backend.calls == 2
    batch, _ = await ended(client, "/v1/embeddings", [{"input": "hello"}] * LINES)
    assert batch.request_counts.completed == LINES


async def test_embeddings_come_back_as_lines_of_their_own(served):
    """Each line has its own vectors from index 0 on and its part of the usage; a bad one harms only itself."""
    client, backend = served
    backend.reset(rule)
    bodies = [{"input": f"{'bad ' * (n == 21)}text number {n}"} for n in range(LINES)]
    for body in bodies[40:]:
        body["encoding_format"] = "base64"
    bodies[30]["input"] = ["two", "inputs"]
    bodies[31]["dimensions"] = 8
    batch, lines = await ended(client, "/v1/embeddings", bodies)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (LINES - 1, 1)
    assert lines[21]["response"]["status_code"] == 400
    tokens = 0
    for n, line in enumerate(lines):
        if n == 21:
            continue
        if n >= 40:
            (item,) = line["response"]["body"]["data"]
            item["embedding"] = struct.unpack("<8f", base64.b64decode(item["embedding"]))
        reply = CreateEmbeddingResponse.model_validate(line["response"]["body"])
        inputs = bodies[n]["input"] if n == 30 else [bodies[n]["input"]]
        assert [item.index for item in reply.data] == list(range(len(inputs)))
        with OpenAI(base_url=backend.url, api_key="none", max_retries=0) as direct:
            alone = direct.embeddings.create(model="m", input=inputs)
        for item, other in zip(reply.data, alone.data, strict=True):
            assert item.embedding == pytest.approx(other.embedding)
        tokens += reply.usage.prompt_tokens
    assert tokens == batch.usage.input_tokens == sum(len(str(body["input"]).split()) for body in bodies) - 4
    assert sum("tidemill" in line["response"]["body"].get("usage", {}) for line in lines) >= LINES - 10
    ids = {line["response"]["request_id"] for line in lines}
    assert ids <= {call.get("x-request-id") for call in backend.headers}
    assert len(ids) < LINES / 2


async def test_completions_come_back_with_their_own_choices(served):
    """Two choices a prompt, in order; the tokens of all lines are those of the calls."""
    client, backend = served
    backend.reset(rule)
    batch, lines = await ended(client, "/v1/completions", [{"prompt": f"say {n}", "n": 2} for n in range(LINES)])
    assert batch.request_counts.completed == LINES
    assert backend.calls < LINES / 4
    used = 0
    for n, line in enumerate(lines):
        reply = Completion.model_validate(line["response"]["body"])
        assert [(choice.index, choice.text) for choice in reply.choices] == [(k, f"echo: say {n}") for k in (0, 1)]
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
        used += reply.usage.total_tokens
    assert used == batch.usage.total_tokens == 2 * 2 * LINES + backend.calls
