"""Anthropic's Message Batches API, over a real app."""

from dataclasses import replace

import httpx
import orjson
import pytest
from support.dependencies import READER, client_of, open_dependencies, with_settings
from support.ended_batches import end, errored

from tidemill.api.anthropic import results
from tidemill.configuration.settings import Settings
from tidemill.schemas import ids
from tidemill.schemas.jsonl import line as lines
from tidemill.schemas.log import topics
from tidemill.schemas.log.messages import BatchCreated
from tidemill.schemas.resources.batch import (
    Batch,
    BatchError,
    BatchErrors,
    Extras,
    Receipt,
    RequestCounts,
    Status,
)  # fmt: skip
from tidemill.schemas.resources.error import ApiError

PARAMS = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "é\u2028"}]}
WANTED = {"endpoint": "/v1/messages", "completion_window": "24h"}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "text", "text": "yes"}]}
OVERLOAD = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
SETTINGS = Settings(
    file_lines_max=5, file_bytes_max=200_000, line_bytes_max=65_536, limits={"requests_burst": 200}
)
CANCELLED = ("cancelled_at", Status.CANCELLED)
EXPIRED = ("expired_at", Status.EXPIRED)


@pytest.fixture
async def deps(tmp_path):
    """Dependencies with small limits."""
    async with open_dependencies(tmp_path) as deps:
        yield replace(deps, settings=SETTINGS)


@pytest.fixture
async def client(deps):
    """A client of the app, as the project `p`."""
    headers = {"x-api-key": "key-of-p", "anthropic-version": "2023-06-01"}
    async with client_of(deps, None, base="http://api", **headers) as client:
        yield client


async def create(client, count=2, **options):
    """Create a batch of requests `r-0`, `r-1` and so on."""
    requests = [{"custom_id": f"r-{i}", "params": PARAMS} for i in range(count)]
    return await client.post("/v1/messages/batches", json={"requests": requests}, **options)


async def get(client, path: str) -> dict:
    """The body of a good answer."""
    found = await client.get(f"/v1/messages/batches{path}")
    assert found.status_code == 200, found.text
    return found.json()


def error(answer: httpx.Response) -> tuple[int, str, str]:
    """The status, type and message of an error, whose body and headers name the request."""
    body = answer.json()
    assert body.keys() == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    return answer.status_code, body["error"]["type"], body["error"]["message"]


async def once(data: bytes):
    """One chunk."""
    yield data


def answered(batch_id, index, status, body, error=None):
    """A line with an answer."""
    return lines.answered(
        batch_id, index, b'"r-%d"' % index, status=status, request_id="req_9", body=orjson.dumps(body), error=error
    )


async def test_a_batch_is_made_of_ordinary_lines(client, deps):
    """In an input file, with one command; it is the same batch in OpenAI's API, and it lasts 24 hours."""
    made = await create(client)
    assert made.status_code == 200
    batch = made.json()
    assert batch == {
        "id": batch["id"],
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": {"processing": 2, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
        "created_at": "2027-01-15T08:00:00Z",
        "expires_at": "2027-01-16T08:00:00Z",
        "ended_at": None,
        "cancel_initiated_at": None,
        "archived_at": None,
        "results_url": None,
    }
    twin = (await client.get(f"/v1/batches/{batch['id']}")).json()
    assert (twin["endpoint"], twin["completion_window"]) == ("/v1/messages", "24h")
    content = (await client.get(f"/v1/files/{twin['input_file_id']}/content")).text
    assert [orjson.loads(line) for line in content.split("\n")[:-1]] == [
        {"custom_id": f"r-{i}", "method": "POST", "url": "/v1/messages", "body": PARAMS} for i in range(2)
    ]
    (command,) = [value for topic, _, value in deps.log.records if topic == topics.COMMANDS.name]
    created = BatchCreated.model_validate_json(command)
    assert (created.batch.id, created.input.bytes) == (batch["id"], len(content.encode()))


async def test_the_usual_window_stands_in_for_24_hours(deps):
    """If the operator does not offer them."""
    changed = with_settings(deps, Settings(windows={"1h": 0, "2h": 0}, default_window="2h"))
    async with client_of(changed, base="http://api") as other:
        made = (await create(other)).json()
    assert made["expires_at"] == "2027-01-15T10:00:00Z"


async def test_a_repetition_by_an_sdk_is_the_same_batch(client, deps):
    """And leaves nothing behind; the same requests sent anew are another batch."""
    first = (await create(client)).json()["id"]
    again = (await create(client, headers={"x-stainless-retry-count": "1"})).json()["id"]
    anew = (await create(client)).json()["id"]
    keyed = [(await create(client, headers={"idempotency-key": "k"})).json()["id"] for _ in range(2)]
    assert again == first != anew
    assert keyed[0] == keyed[1]
    assert len([key async for key in deps.store.keys("files/")]) == 3
    assert len((await client.get("/v1/files")).json()["data"]) == 3
    other = await create(client, 1, headers={"idempotency-key": "k"})
    assert error(other)[:2] == (409, "invalid_request_error")
    assert len([key async for key in deps.store.keys("files/")]) == 3


async def test_a_list_has_pages_in_both_directions(client):
    """Like Anthropic's: the newest first, `before_id` goes up; batches of other endpoints are not in it."""
    form = {"data": {"purpose": "batch"}, "files": {"file": ("f", b'{"custom_id":"a"}')}}
    file_id = (await client.post("/v1/files", **form)).json()["id"]
    body = {"endpoint": "/v1/embeddings", "input_file_id": file_id, "completion_window": "24h"}
    other = (await client.post("/v1/batches", json=body)).json()["id"]
    made = [(await create(client)).json()["id"] for _ in range(5)][::-1]
    whole = await get(client, "")
    assert [each["id"] for each in whole["data"]] == made
    assert (whole["has_more"], whole["first_id"], whole["last_id"]) == (False, made[0], made[-1])
    down = await get(client, f"?limit=2&after_id={made[1]}")
    assert [each["id"] for each in down["data"]] == made[2:4]
    assert (down["has_more"], down["first_id"], down["last_id"]) == (True, made[2], made[3])
    up = await get(client, f"?limit=2&before_id={made[3]}")
    assert [each["id"] for each in up["data"]] == made[1:3]
    assert (up["has_more"], up["first_id"]) == (True, made[1])
    assert (await get(client, f"?before_id={made[0]}"))["data"] == []
    for query, said in (
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        (f"after_id={made[0]}&before_id={made[1]}", "before_id"),
        ("before_id=batch_none", "before_id"),
        ("after_id=batch_none", "after_id"),
    ):
        status, kind, message = error(await client.get(f"/v1/messages/batches?{query}"))
        assert (status, kind) == (400, "invalid_request_error")
        assert f"'{said}'" in message
    for path in ("", "/results"):
        assert error(await client.get(f"/v1/messages/batches/{other}{path}"))[0] == 404
    assert error(await client.post(f"/v1/messages/batches/{other}/cancel"))[0] == 404
    assert error(await client.delete(f"/v1/messages/batches/{other}"))[0] == 404


async def test_a_list_goes_on_after_a_deleted_batch(client, deps):
    """A client may delete what a page has before it asks for the next; so in OpenAI's API."""
    made = [(await create(client)).json()["id"] for _ in range(3)][::-1]
    await end(deps, made[0], "failed_at", Status.FAILED, [])
    assert (await client.delete(f"/v1/messages/batches/{made[0]}")).status_code == 200
    for path, name in (("/v1/messages/batches", "after_id"), ("/v1/batches", "after")):
        page = (await client.get(path, params={name: made[0]})).json()
        assert [each["id"] for each in page["data"]] == made[1:]


async def test_cancel_then_delete(client, deps):
    """A running batch cannot be deleted; a deleted one takes its requests along."""
    batch_id = (await create(client)).json()["id"]
    path = f"/v1/messages/batches/{batch_id}"
    assert error(await client.delete(path))[:2] == (409, "invalid_request_error")
    assert error(await client.get(f"{path}/results"))[:2] == (404, "not_found_error")
    for _ in range(2):
        canceled = (await client.post(f"{path}/cancel")).json()
        assert canceled["processing_status"] == "canceling"
        assert canceled["cancel_initiated_at"] == "2027-01-15T08:00:00Z"
    await end(deps, batch_id, *CANCELLED, [])
    for _ in range(2):
        assert (await client.delete(path)).json() == {"id": batch_id, "type": "message_batch_deleted"}
    assert error(await client.get(path))[:2] == (404, "not_found_error")
    assert (await client.get("/v1/files")).json()["data"] == []
    assert [key async for key in deps.store.keys("files/")] == []


async def test_requests_stay_while_another_batch_has_them(client, deps):
    """A rerun of all lines, for example, shares the input file."""
    first = (await create(client)).json()["id"]
    file_id = (await client.get(f"/v1/batches/{first}")).json()["input_file_id"]
    second = (await client.post("/v1/batches", json={**WANTED, "input_file_id": file_id})).json()["id"]
    for batch_id, status in ((first, 200), (second, 404)):
        await end(deps, batch_id, *CANCELLED, [])
        assert (await client.delete(f"/v1/messages/batches/{batch_id}")).status_code == 200
        assert (await client.get(f"/v1/files/{file_id}")).status_code == status


async def test_an_uploaded_file_outlives_its_message_batch(client, deps):
    """Also one that has the name of those which are made of requests."""
    form = {"files": {"file": ("message-batch.jsonl", b"{}")}, "data": {"purpose": "batch"}}
    file_id = (await client.post("/v1/files", **form)).json()["id"]
    batch_id = (await client.post("/v1/batches", json={**WANTED, "input_file_id": file_id})).json()["id"]
    await end(deps, batch_id, *CANCELLED, [])
    assert (await client.delete(f"/v1/messages/batches/{batch_id}")).is_success
    assert (await client.get(f"/v1/files/{file_id}")).is_success


async def test_results_come_from_both_files_in_order(client, deps):
    """Each of its kind, with the server's own error if it has Anthropic's shape."""
    batch_id = (await create(client, 5)).json()["id"]
    code, message = lines.CANCELLED
    texts = [
        (0, False, answered(batch_id, 0, 200, MESSAGE)),
        (1, True, answered(batch_id, 1, 529, OVERLOAD)),
        (2, True, answered(batch_id, 2, 429, {"error": {"message": "slow down", "code": "x"}})),
        (3, True, lines.unanswered(batch_id, 3, b'"r-3"', code="timeout", message="No answer in time.")),
        (4, True, lines.unanswered(batch_id, 4, b'"r-4"', code=code, message=message)),
    ]
    counts = RequestCounts(total=5, completed=1, failed=3)
    await end(deps, batch_id, *CANCELLED, texts, request_counts=counts)
    batch = await get(client, f"/{batch_id}")
    assert batch["processing_status"] == "ended"
    assert batch["ended_at"] == "2027-01-15T08:01:00Z"
    assert batch["request_counts"] == {"processing": 0, "succeeded": 1, "errored": 3, "canceled": 1, "expired": 0}
    answer = await client.get(batch["results_url"])
    assert answer.headers["content-type"] == "application/x-jsonl"
    found = [orjson.loads(line) for line in answer.content.splitlines()]
    assert [line["custom_id"] for line in found] == [f"r-{i}" for i in range(5)]
    assert [line["result"] for line in found] == [
        {"type": "succeeded", "message": MESSAGE},
        {"type": "errored", "error": {"request_id": "req_9", **OVERLOAD}},
        errored("rate_limit_error", "slow down", "req_9"),
        errored("api_error", "No answer in time."),
        {"type": "canceled"},
    ]


async def test_results_without_one_of_their_files_are_no_results(client, deps):
    """If a file is deleted while they are sent, they break off; afterwards there are no results."""
    batch_id = (await create(client)).json()["id"]
    texts = [
        (index, index == 1, answered(batch_id, index, 200, MESSAGE, {"code": "x", "message": "y"}))
        for index in range(2)
    ]
    await end(deps, batch_id, "completed_at", Status.COMPLETED, texts)
    batch = Batch.model_validate_json(deps.view.batch("p", batch_id))
    assert len(b"".join([chunk async for chunk in results.written(deps, "p", batch)]).splitlines()) == 2
    deps.view.drop_file(ids.derived_file_id(batch_id, "errors"), -1)
    with pytest.raises(ApiError):
        async for _ in results.written(deps, "p", batch):
            pass
    assert (await get(client, f"/{batch_id}"))["results_url"] is None


async def test_a_rejected_batch_has_ended_with_errors_that_name_the_fault(client, deps):
    """Faults of the whole batch, or of all its requests; those that are not listed are errors, too."""
    batch_id = (await create(client, 3)).json()["id"]
    fault = BatchError(code="model_not_found", message="No such model.", param="body.model", line=2)
    more = BatchError(code="too_many_errors", message="Not listed: 1 more error.")
    await end(deps, batch_id, "failed_at", Status.FAILED, [], errors=BatchErrors(data=(fault, more)))
    batch = await get(client, f"/{batch_id}")
    assert (batch["processing_status"], batch["request_counts"]["errored"]) == ("ended", 3)
    found = [orjson.loads(line) for line in (await client.get(batch["results_url"])).content.splitlines()]
    other = "This request was not executed, because the batch is invalid: requests.1.params.model: No such model."
    assert [line["custom_id"] for line in found] == ["r-0", "r-1", "r-2"]
    assert [line["result"] for line in found] == [
        errored("invalid_request_error", other),
        errored("not_found_error", "params.model: No such model."),
        errored("invalid_request_error", other),
    ]


@pytest.mark.parametrize(("at", "status", "kind"), [(*CANCELLED, "canceled"), (*EXPIRED, "expired")])
async def test_a_batch_that_ended_before_its_check(client, deps, at, status, kind):
    """Has its requests as results, until its input is deleted."""
    batch_id = (await create(client)).json()["id"]
    receipt = Receipt(lines=0) if status is Status.CANCELLED else None
    await end(deps, batch_id, at, status, [], tidemill=Extras(receipt=receipt))
    batch = await get(client, f"/{batch_id}")
    assert batch["request_counts"] == dict.fromkeys(batch["request_counts"], 0) | {kind: 2}
    found = [orjson.loads(line) for line in (await client.get(batch["results_url"])).content.splitlines()]
    assert found == [{"custom_id": f"r-{i}", "result": {"type": kind}} for i in range(2)]
    input_id = (await client.get(f"/v1/batches/{batch_id}")).json()["input_file_id"]
    await client.delete(f"/v1/files/{input_id}")
    assert (await get(client, f"/{batch_id}"))["results_url"] is None
    assert error(await client.get(f"/v1/messages/batches/{batch_id}/results"))[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "headers", "expected"),
    [
        ("GET", "/v1/messages/batches", {"x-api-key": ""}, (401, "authentication_error", "x-api-key header")),
        ("GET", "/v1/messages/batches", {"x-api-key": "no"}, (401, "authentication_error", "Incorrect API key")),
        ("POST", "/v1/messages/batches", {"x-api-key": READER}, (403, "permission_error", "Your API key has")),
        ("GET", "/v1/messages/batches/batch_1", {}, (404, "not_found_error", "No batch found with id 'batch_1'.")),
        ("GET", "/v1/messages/count_tokens", {}, (404, "not_found_error", "Invalid URL")),
        ("POST", "/v1/messages", {}, (404, "not_found_error", "Invalid URL")),
        ("PATCH", "/v1/messages/batches", {}, (405, "invalid_request_error", "Invalid method")),
        ("GET", "/v1/models/none", {}, (404, "not_found_error", "The model 'none' does not exist")),
    ],
)
async def test_errors_have_anthropics_shape(client, method, path, headers, expected):
    """With the type of their status."""
    status, kind, message = error(await client.request(method, path, headers=headers))
    assert (status, kind, message[: len(expected[2])]) == expected


async def test_limits_are_errors_of_anthropics_shape(client, deps, monkeypatch):
    """Of the size, the number, the rate, and the service; no time passes that would refill the rate."""
    monkeypatch.setattr(deps.access.rates, "_clock", lambda: 0.0)
    large = {"requests": [{"custom_id": "a", "params": PARAMS | {"x": "x" * 300_000}}]}
    for content in (large, {"requests": [{"custom_id": "a", "params": PARAMS | {"x": "x" * 100_000}}]}):
        assert error(await client.post("/v1/messages/batches", json=content))[:2] == (413, "request_too_large")
    chunked = await client.post("/v1/messages/batches", content=once(orjson.dumps(large)))
    assert error(chunked)[:2] == (413, "request_too_large")
    assert error(await create(client, 6))[:2] == (400, "invalid_request_error")
    assert [key async for key in deps.store.keys("files/")] == []
    deps.log.away = True
    assert error(answer := await create(client))[:2] == (529, "overloaded_error")
    assert answer.headers["retry-after"] == "2"
    deps.log.away = False
    for _ in range(100):
        answer = await client.get("/v1/messages/batches")
        assert float(answer.headers["anthropic-ratelimit-requests-remaining"]) >= 0
        if answer.status_code != 200:
            break
    assert error(answer)[:2] == (429, "rate_limit_error")
    assert answer.headers["retry-after"]
