"""Two models on one real inference server, and a third: the demo's engine, or vLLM (`support/real_servers.py`)."""

import json
import os

import pytest
from openai import OpenAI
from support.real_servers import VLLM_PYTHON, demo_server, vllm_servers
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.local import demo

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.kafka,
    pytest.mark.skipif(not demo.is_installed(), reason="the demo's packages are not installed"),
]

LINES = int(os.environ.get("REAL_LINES", "24"))
LIMIT = 8
END_SECONDS_MAX = WAIT_SECONDS_MAX + LINES
CHAT = "/v1/chat/completions"
BODIES = {
    "/v1/embeddings": lambda number: {"input": f"number {number}"},
    "/v1/score": lambda number: {"text_1": "a number", "text_2": [f"number {number}", "a cat"]},
}


def chat(number):
    text = f"Which number follows {number}?"
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0}


@pytest.fixture(params=["demo", "vllm"] if VLLM_PYTHON else ["demo"])
def real(request, tmp_path):
    made = demo_server(tmp_path / "demo.log") if request.param == "demo" else vllm_servers(tmp_path)
    with made as server:
        yield server


@pytest.fixture
def service(real, tmp_path):
    """The models `a` and `b` of one server, and `c` of the other."""
    text = f'[servers.chat]\nurl = "{real.url}"\nmax_in_flight = {LIMIT}\n'
    for name, upstream in zip("ab", real.names, strict=True):
        text += f'[models.{name}]\nservers = ["chat"]\nupstream_model = "{upstream}"\nendpoints = ["{CHAT}"]\n'
    server = "chat"
    if real.other_url != real.url:
        text += f'[servers.other]\nurl = "{real.other_url}"\n'
        server = "other"
    text += (
        f'[models.c]\nservers = ["{server}"]\nupstream_model = "{real.other}"\nendpoints = ["{real.endpoint}"]\n'
    )
    (tmp_path / "tidemill.toml").write_text(text)
    stack = Stack(tmp_path / "data", {})
    stack.cwd = tmp_path
    with stack:
        yield stack


def test_batches_of_models_that_share_a_real_server(service, real):
    """Each batch gets replies of the model that its name stands for at the server."""
    client = OpenAI(base_url=service.api, api_key=KEY, max_retries=5)

    def create(model, endpoint, body):
        lines = [
            {"custom_id": f"c-{n}", "method": "POST", "url": endpoint, "body": {"model": model, **body(n)}}
            for n in range(LINES)
        ]
        text = b"\n".join(json.dumps(line).encode() for line in lines)
        file = client.files.create(file=("in.jsonl", text), purpose="batch")
        return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h").id

    batches = [create(model, CHAT, chat) for model in "ab"]
    batches.append(create("c", real.endpoint, BODIES[real.endpoint]))
    replies = [_replies(client, batch) for batch in batches]
    for found, upstream in zip(replies, (*real.names, real.other), strict=True):
        assert {reply["model"] for reply in found} == {upstream}
        assert all(reply["usage"]["prompt_tokens"] > 0 for reply in found)
    said = [[reply["choices"][0]["message"]["content"] for reply in found] for found in replies[:2]]
    assert all(map(any, said))
    assert (said[0] != said[1]) == (real.names[0] != real.names[1])
    numbers = [reply["data"][0].get("score") or reply["data"][0].get("embedding") for reply in replies[2]]
    assert len({json.dumps(number) for number in numbers}) > LINES / 2


def _replies(client, batch_id):
    """The replies of a batch in the order of its lines."""
    wait_until(
        lambda: client.batches.retrieve(batch_id).status in {"completed", "failed"}, seconds_max=END_SECONDS_MAX
    )
    batch = client.batches.retrieve(batch_id)
    assert batch.status == "completed", batch.errors
    assert (batch.request_counts.completed, batch.request_counts.failed) == (LINES, 0)
    assert batch.usage.input_tokens > 0
    lines = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert [line["custom_id"] for line in lines] == [f"c-{n}" for n in range(LINES)]
    return [line["response"]["body"] for line in lines]
