"""Single asynchronous requests over a real app: what becomes of them, and how their ends are shown."""

import asyncio

import orjson
import pytest
from support.ended_batches import end
from support.waiting import WAIT_SECONDS_MAX

from tidemill.api import dependencies
from tidemill.schemas.jsonl import line as lines
from tidemill.schemas.jsonl.line import Call
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchCreated, BatchRecord
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.batch import Batch, BatchError, BatchErrors, Status

CHAT = "/async/chat/completions"
BODY = b'{"model": "m",\n "messages": [], "seed": 1.50}'
ANSWER = b'{"id": "c", "n": 1.10}'


async def create(client, path=CHAT, content=BODY, **options):
    """A new request."""
    return await client.post(path, content=content, **options)


def result(batch_id, status, *, error=None):
    """A result line."""
    return lines.answered(
        batch_id,
        0,
        b'"request"',
        status=status,
        request_id="r",
        body=ANSWER,
        call=Call(1, b'"s"', 0.1),
        error=error,
    )


def seen(deps, batch_id, **changes):
    """Let the view see a batch as results has it."""
    batch = Batch.model_validate_json(deps.view.batch("p", batch_id)).model_copy(update=changes)
    batch = batch.model_copy(update={"tidemill": batch.tidemill.model_copy(update={"single": True})})
    deps.view.put_batch(BatchRecord(project="p", batch=batch))


async def test_a_request_is_a_batch_of_one_line(client, deps):
    """Its line has the text of the body; the callback and the window are those of the batch."""
    query = {"completion_window": "24h", "callback_url": "https://example.com/done"}
    await client.post("/webhook_endpoints/callback/rotate_secret")
    made = (await create(client, params=query)).json()
    assert (made["object"], made["status"], made["endpoint"], made["response"]) == (
        "async.request", "queued", "/v1/chat/completions", None,
    )  # fmt: skip
    (command,) = [
        codec.decode_command(value) for topic, _, value in deps.log.records if topic == topics.COMMANDS.name
    ]
    assert isinstance(command, BatchCreated)
    assert (command.batch.id, command.batch.tidemill.single) == (made["id"], True)
    assert command.batch.tidemill.callback_url == query["callback_url"]
    content = (await client.get(f"/files/{command.batch.input_file_id}/content")).content
    assert content.endswith(b'"body":{"model": "m",  "messages": [], "seed": 1.50}}\n')
    assert (await client.get(f"{CHAT}/{made['id']}")).json() == made


async def test_a_repeated_request_runs_once(client, deps):
    """With a key; another body with the key is refused."""
    key = {"Idempotency-Key": "k"}
    ids = {(await create(client, headers=key)).json()["id"] for _ in range(2)}
    assert len(ids) == 1
    assert (await create(client, content=b'{"model": "n"}', headers=key)).status_code == 409
    assert sum(topic == topics.COMMANDS.name for topic, _, _ in deps.log.records) == 1


async def test_an_answer_keeps_its_text(client, deps):
    """Of the output file."""
    made = (await create(client)).json()
    await end(
        deps, made["id"], "completed_at", Status.COMPLETED, [(0, False, result(made["id"], 200))],
        output_file_id="file-x", in_progress_at=1, model="m",
    )  # fmt: skip
    seen(deps, made["id"])
    answer = await client.get(f"{CHAT}/{made['id']}")
    assert ANSWER in answer.content
    found = answer.json()
    assert (found["status"], found["status_code"], found["error"], found["model"]) == ("completed", 200, None, "m")
    assert found["ended_at"] > found["created_at"]


@pytest.mark.parametrize("error", [OSError("away"), NotFound("gone"), None])
async def test_a_store_that_fails_during_the_read_is_unavailable(client, deps, monkeypatch, error):
    """The lookup found the line, then its object does not come, or never."""
    made = (await create(client)).json()
    await end(deps, made["id"], "completed_at", Status.COMPLETED, [(0, False, result(made["id"], 200))])
    seen(deps, made["id"])

    async def read(found):
        assert found
        await (asyncio.Event().wait() if error is None else asyncio.sleep(0))
        raise error
        yield

    monkeypatch.setattr(deps.lines, "read", read)
    monkeypatch.setattr(dependencies, "STORE_SECONDS_MAX", 0.1)
    answer = await asyncio.wait_for(client.get(f"{CHAT}/{made['id']}"), WAIT_SECONDS_MAX)
    assert answer.status_code == 503


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (None, "backend_error", "The server answered with status 400."),
        ({"code": "backend_timeout", "message": "late"}, "backend_timeout", "late"),
    ],
)
async def test_a_refused_request_has_failed(client, deps, error, code, message):
    """With the server's answer, if there is one."""
    made = (await create(client)).json()
    line = result(made["id"], 400, error=error)
    await end(deps, made["id"], "completed_at", Status.COMPLETED, [(0, True, line)])
    seen(deps, made["id"])
    found = (await client.get(f"{CHAT}/{made['id']}")).json()
    assert (found["status"], found["status_code"]) == ("failed", 400)
    assert found["error"] == {"code": code, "message": message}
    assert found["response"] == orjson.loads(ANSWER)


async def test_a_refused_request_has_the_words_of_its_server(client, deps):
    """In its error, too."""
    made = (await create(client)).json()
    body = b'{"detail":"too long"}'
    line = lines.answered(made["id"], 0, b'"request"', status=400, request_id="r", body=body)
    await end(deps, made["id"], "completed_at", Status.COMPLETED, [(0, True, line)])
    seen(deps, made["id"])
    found = (await client.get(f"{CHAT}/{made['id']}")).json()
    assert found["error"]["message"] == "The server answered with status 400: too long"


@pytest.mark.parametrize(
    ("status", "shown", "code"),
    [
        (Status.FAILED, "failed", "model_not_found"),
        (Status.EXPIRED, "expired", "batch_expired"),
        (Status.CANCELLED, "cancelled", "batch_cancelled"),
    ],
)
async def test_a_request_without_an_answer_says_why(client, deps, status, shown, code):
    """Also one that ingest refused."""
    made = (await create(client)).json()
    errors = (
        BatchErrors(data=(BatchError(code="model_not_found", message="no"),)) if status is Status.FAILED else None
    )
    seen(deps, made["id"], status=status, errors=errors, **{f"{status}_at": 1_800_000_009})
    found = (await client.get(f"{CHAT}/{made['id']}")).json()
    assert (found["status"], found["error"]["code"], found["ended_at"]) == (shown, code, 1_800_000_009)


async def test_only_requests_of_the_endpoint_are_found(client):
    """Not those of another one, and no batches."""
    made = (await create(client)).json()
    assert (await client.get(f"/async/embeddings/{made['id']}")).status_code == 404
    assert (await client.get(f"/async/nothing/{made['id']}")).status_code == 404
    body = {"endpoint": "/v1/chat/completions", "completion_window": "24h", "input_file_id": "file-x"}
    batch = (await client.post("/batches", json=body)).json()
    assert (await client.get(f"{CHAT}/{batch['id']}")).status_code == 404
    assert (await create(client, "/async/nothing")).status_code == 404


@pytest.mark.parametrize(
    ("content", "query", "param"),
    [
        (b"[]", {}, None),
        (b"{", {}, None),
        (BODY, {"completion_window": "9h"}, "completion_window"),
        (BODY, {"callback_url": "ftp://example.com"}, "callback_url"),
    ],
)
async def test_faults(client, deps, content, query, param):
    """Nothing is left of such a request."""
    answer = await create(client, content=content, params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert not deps.log.records
