"""Batches without an uploaded file: requests in the create, and in appends, while the api is killed."""

import json
import os
import subprocess
import sys

import httpx
import pytest
from support.backend import Behaviour
from support.stack import KEY
from support.waiting import WAIT_SECONDS_MAX, wait_until

pytestmark = pytest.mark.e2e

CHAT = "/v1/chat/completions"
APPENDS = 6
APPEND_LINES = 20


@pytest.fixture
def client(stack):
    """A client that repeats a request until the api answers it."""
    with httpx.Client(
        base_url=stack.api, headers={"authorization": f"Bearer {KEY}"}, timeout=WAIT_SECONDS_MAX
    ) as client:
        yield client


def post(client, path, *, key=None, **body):
    """Post a request, repeatedly while the api is down; returns the answer."""
    found = []

    def answered():
        try:
            answer = client.post(path, json=body, headers={"Idempotency-Key": key} if key else {})
        except httpx.TransportError:
            return False
        if answer.status_code >= 500:
            return False
        assert answer.status_code == 200, answer.text
        found.append(answer.json())
        return True

    wait_until(answered, f"answer to POST {path}")
    return found[-1]


def request(name):
    """A chat completion."""
    return {"custom_id": name, "body": {"model": "chat", "messages": [{"role": "user", "content": name}]}}


def results(client, batch_id):
    """The `custom_id`s of the output of a completed batch."""
    wait_until(
        lambda: client.get(f"/batches/{batch_id}").json()["status"] == "completed", "end of the batch",
    )  # fmt: skip
    batch = client.get(f"/batches/{batch_id}").json()
    receipt = batch["tidemill"]["receipt"]
    assert (receipt["missing"], receipt["double"]) == (0, 0)
    content = client.get(f"/files/{batch['output_file_id']}/content").text
    return [json.loads(line)["custom_id"] for line in content.splitlines()]


def test_requests_in_the_create(stack, backend, client):
    """The api is killed while creates with one key are repeated: they make one batch."""
    backend.reset()
    names = [f"line-{number}" for number in range(100)]
    made = set()
    for kill in (True, False):
        body = {"endpoint": CHAT, "completion_window": "24h", "requests": [request(name) for name in names]}
        made.add(post(client, "/batches", key="inline", **body)["id"])
        if kill:
            stack.kill("api")
    (batch_id,) = made
    assert results(client, batch_id) == names
    assert sum(backend.bodies.values()) == len(names)


def test_appends_while_the_api_is_killed(stack, backend, client):
    """Each append is sent twice, before and after a kill, and counts once; lines run before the seal."""
    backend.reset()
    batch_id = post(client, "/batches", key="open", endpoint=CHAT, completion_window="24h", open=True)["id"]
    names = []
    for sequence in range(1, APPENDS + 1):
        some = [f"line-{sequence}-{number}" for number in range(APPEND_LINES)]
        body = {"sequence": sequence, "requests": [request(name) for name in some]}
        post(client, f"/batches/{batch_id}/requests", **body)
        if sequence % 2:
            stack.kill("api")
        post(client, f"/batches/{batch_id}/requests", **body)
        names += some
    wait_until(
        lambda: client.get(f"/batches/{batch_id}").json()["request_counts"]["completed"] == len(names),
        "all lines, before the seal",
    )
    shown = client.get(f"/batches/{batch_id}").json()
    extras = shown["tidemill"]
    assert (shown["status"], extras["open"], extras["sequence"]) == ("in_progress", True, APPENDS)
    post(client, f"/batches/{batch_id}/seal", sequence=APPENDS)
    stack.kill("api")
    assert post(client, f"/batches/{batch_id}/seal", sequence=APPENDS)["id"] == batch_id
    assert results(client, batch_id) == names
    assert sum(backend.bodies.values()) == len(names)


@pytest.fixture
def tidemill(stack, tmp_path):
    """Start a command in the folder of the test, with a state directory of its own."""
    environ = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}

    def start(*words, **options):
        command = [sys.executable, "-m", "tidemill", *words, "--base-url", stack.api, "--api-key", KEY]
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    return start


def ended(process):
    """The exit code, the object on stdout and stderr of a command."""
    out, err = process.communicate(timeout=WAIT_SECONDS_MAX)
    return process.returncode, json.loads(out) if out else None, err


def test_an_open_batch_from_the_command_line(stack, backend, client, tidemill, tmp_path):
    """Each line runs once, though commands are killed and repeated, and so is the api."""
    backend.reset()
    files = {"first": range(4_000), "second": range(4_000, 4_010)}
    for name, numbers in files.items():
        lines = [request(f"line-{number}") | {"method": "POST", "url": CHAT} for number in numbers]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    begun = [ended(tidemill("begin", CHAT, "--key", "cli", "--name", "crawl"))[1]["id"] for _ in range(2)]
    batch_id = begun[0]
    assert begun == [batch_id, batch_id]
    killed = tidemill("append", batch_id, "first")
    # The command saves the file's state before it sends a line.
    (memory,) = wait_until(lambda: list((tmp_path / "state").rglob("appended.json")), "the note of the file")
    killed.kill()
    killed.communicate()
    assert not json.loads(memory.read_bytes())[0]["is_done"]
    for words in (("append", batch_id, "second"), ("seal", batch_id)):
        code, _, err = ended(tidemill(*words))
        assert (code, "appended in part" in err) == (2, True), err
    stack.kill("api")
    wait_until(lambda: ended(tidemill("append", batch_id, "first"))[0] == 0, "the whole file")
    code, found, err = ended(tidemill("append", batch_id, "first"))
    assert (code, found["sequence"], found["requests"], "nothing was sent" in err) == (0, 4, 4_000, True), err
    with (tmp_path / "second").open() as more:
        code, found, err = ended(tidemill("append", batch_id, "-", stdin=more))
    assert (code, found["sequence"]) == (0, 5), err
    (tmp_path / "bad").write_text('{"custom_id": "a", "body": {}, "url": "/v1/embeddings"}\n')
    code, found, err = ended(tidemill("append", batch_id, "bad"))
    assert (code, found["requests"], "from line 1 on, nothing is appended" in err) == (2, 0, True), err
    assert [ended(tidemill("seal", batch_id))[1]["id"] for _ in range(2)] == begun
    assert results(client, batch_id) == [f"line-{number}" for numbers in files.values() for number in numbers]
    assert sum(backend.bodies.values()) == 4_010


def test_a_single_request(stack, backend, client):
    """Repeated after a kill of the api, it runs once; its answer has the server's text."""
    backend.reset()
    path = "/async/chat/completions"
    body = request("alone")["body"]
    first = post(client, path, key="single", **body)
    stack.kill("api")
    assert post(client, path, key="single", **body)["id"] == first["id"]
    wait_until(
        lambda: client.get(f"{path}/{first['id']}").json()["status"] == "completed",
        "answer",
    )
    found = client.get(f"{path}/{first['id']}").json()
    assert (found["status_code"], found["error"], found["model"]) == (200, None, "chat")
    assert found["response"]["choices"][0]["message"]["role"] == "assistant"
    assert sum(backend.bodies.values()) == 1
    refused = post(client, path, **body | {"messages": None})
    wait_until(
        lambda: client.get(f"{path}/{refused['id']}").json()["status"] == "failed",
        "refusal",
    )
    assert client.get(f"{path}/{refused['id']}").json()["error"]["code"] == "invalid_request"


@pytest.mark.parametrize("is_open", [False, True], ids=["in the create", "in an append"])
def test_answers_must_fit_a_schema(backend, client, is_open):
    """An answer that does not fit fails its line without a retry or cost; a rerun checks its answers, too."""
    good, bad = {"label": "spam"}, {"label": "ham", "why": "it is"}
    texts = {"good": json.dumps(good), "bad": json.dumps(bad)}

    def answers(body, nth):
        """The answer that the line asks for; the second call gets a good one."""
        kind = body["messages"][0]["content"].split()[0]
        message = {"role": "assistant", "content": texts["good" if nth > 1 else kind]}
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return Behaviour(body=json.dumps({"id": "c", "choices": choices, "usage": usage}).encode())

    backend.reset(answers)
    schema = {"type": "object", "properties": {"label": {"enum": ["spam"]}}, "required": ["label"]}
    names = [f"{'bad' if number % 5 == 0 else 'good'} {is_open} {number}" for number in range(50)]
    requests = [request(name) for name in names]
    body = {"endpoint": CHAT, "completion_window": "24h", "validate": {"schema": schema}}
    if is_open:
        batch_id = post(client, "/batches", **body, open=True)["id"]
        post(client, f"/batches/{batch_id}/requests", sequence=1, requests=requests)
        post(client, f"/batches/{batch_id}/seal")
    else:
        batch_id = post(client, "/batches", **body, requests=requests)["id"]
    assert results(client, batch_id) == [name for name in names if name.startswith("good")]
    assert sum(backend.bodies.values()) == len(names)
    batch = client.get(f"/batches/{batch_id}").json()
    assert (batch["usage"]["total_tokens"], batch["request_counts"]["failed"]) == (3 * 40, 10)
    errors = client.get(f"/files/{batch['error_file_id']}/content").text.splitlines()
    assert {json.loads(line)["error"]["code"] for line in errors} == {"invalid_output"}
    assert "at /label: " in json.loads(errors[0])["error"]["message"]
    assert json.loads(errors[0])["response"]["body"]["choices"][0]["message"]["content"] == texts["bad"]
    again = post(client, f"/batches/{batch_id}/rerun", lines="failed")
    assert again["tidemill"]["validated"]
    assert len(results(client, again["id"])) == 10
