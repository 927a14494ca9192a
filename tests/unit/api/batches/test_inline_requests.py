"""A batch whose requests are in the body of the create, over a real app on a folder."""

import tracemalloc
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support.dependencies import client_of, commands, open_dependencies

from tidemill.api.requests import inline, reading
from tidemill.api.requests.bodies import NewBatch
from tidemill.configuration.settings import Settings
from tidemill.schemas.jsonl import line as lines
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.resources.batch import Batch, Status

EMBEDDINGS = "/v1/embeddings"
SETTINGS = Settings()
KEY = {"Idempotency-Key": "k"}


def body(*requests: object, **fields: object) -> dict[str, object]:
    """The body of a create."""
    return {"endpoint": EMBEDDINGS, "completion_window": "24h", "requests": list(requests), **fields}


def request(custom_id: object = "1", **fields: object) -> dict[str, object]:
    """A request for an embedding."""
    return {"custom_id": custom_id, "body": {"model": "m", "input": "a"}, **fields}


async def files(client) -> list[str]:
    """The ids of all files."""
    return [file["id"] for file in (await client.get("/files")).json()["data"]]


async def test_requests_become_an_ordinary_input(client, deps):
    """With one command; the text of each body is the one that the client wrote."""
    text = b"""{"endpoint": "/v1/embeddings", "completion_window": "24h", "metadata": {"a": "b"}, "requests": [
        {"custom_id": "\\u00e9", "body": {"model": "m", "input":
 "a\\u2028", "n": 1.10000000000000000000001}},
        {"custom_id": "2", "method": "POST", "url": "/v1/embeddings", "body": {"model":"m","input":[1.50e3]}}]}"""
    made = (await client.post("/batches", content=text)).json()
    content = (await client.get(f"/files/{made['input_file_id']}/content")).content
    assert content.decode() == (
        '{"custom_id":"é","method":"POST","url":"/v1/embeddings","body":'
        '{"model": "m", "input":  "a\\u2028", "n": 1.10000000000000000000001}}\n'
        '{"custom_id":"2","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":[1.50e3]}}\n'
    )
    (command,) = commands(deps)
    assert (command.batch.id, command.input.bytes) == (made["id"], len(content))
    assert (made["status"], made["metadata"], made["tidemill"]["name"]) == (
        "validating", {"a": "b"}, "requests.jsonl",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"requests": []}, "requests", "empty_array"),
        ({"requests": {}}, "requests", "invalid_type"),
        ({"requests": None}, "input_file_id", "missing_required_parameter"),
        ({"requests": [request(str(i)) for i in range(1001)]}, "requests", "array_above_max_length"),
        ({"requests": ["a"]}, "requests[0]", "invalid_type"),
        ({"requests": [request(), 5]}, "requests[1]", "invalid_type"),
        ({"requests": [request(), [request()]]}, "requests[1]", "invalid_type"),
        ({"requests": [request(), request()]}, "requests[1].custom_id", "duplicate_custom_id"),
        ({"requests": [request("")]}, "requests[0].custom_id", "empty_string"),
        ({"requests": [request(1)]}, "requests[0].custom_id", "invalid_type"),
        ({"requests": [request("x" * 513)]}, "requests[0].custom_id", "string_above_max_length"),
        ({"requests": [request(method="GET")]}, "requests[0].method", "invalid_value"),
        ({"requests": [request(url="/v1/responses")]}, "requests[0].url", "invalid_value"),
        ({"requests": [request(body=[])]}, "requests[0].body", "invalid_type"),
        ({"requests": [request(body="{}")]}, "requests[0].body", "invalid_type"),
        ({"requests": [{"custom_id": "1"}]}, "requests[0].body", "missing_required_parameter"),
        ({"requests": [request()], "input_file_id": "file-x"}, "requests", "invalid_value"),
    ],
)
async def test_faults_name_the_request_and_the_field(client, deps, fields, param, code):
    """As OpenAI words them; nothing is left of the request."""
    answer = await client.post("/batches", json=body() | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert (commands(deps), await files(client)) == ([], [])


def nested(levels: int) -> bytes:
    """A body with a request of so many levels."""
    deep = b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"
    return orjson.dumps(body(request(body={}))).replace(b'"body":{}', b'"body":' + deep)


async def test_levels_are_bounded(client, deps):
    """As those of a line of a file, of which a body has one less."""
    assert (await client.post("/batches", content=nested(127))).status_code == 200
    for levels in (128, 1_020, 100_000):
        answer = await client.post("/batches", content=nested(levels))
        assert (answer.status_code, "levels" in answer.json()["error"]["message"]) == (400, True)
    assert len(commands(deps)) == 1
    deep = b'{"metadata":' + b"[" * 1_000 + b"]" * 1_000 + b"}"
    assert (await client.post("/batches", content=deep)).status_code == 400
    single = await client.post("/async/embeddings", content=b'{"a":' + b"[" * 1_020 + b"]" * 1_020 + b"}")
    assert (single.status_code, "levels" in single.json()["error"]["message"]) == (400, True)


MANY = b"[" + b"[]," * 300_000 + b"1]"


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        (
            "/batches",
            orjson.dumps(body(request(body={}))).replace(b'"body":{}', b'"body":{"a":' + MANY + b"}"),
            200,
        ),
        ("/batches", orjson.dumps(body(request(a=0))).replace(b'"a":0', b'"a":' + MANY), 200),
        ("/batches", orjson.dumps(body(request(0))).replace(b'"custom_id":0', b'"custom_id":' + MANY), 400),
        ("/batches", orjson.dumps(body(request(), a=0)).replace(b'"a":0', b'"a":' + MANY), 200),
        ("/batches", orjson.dumps(body(request(), metadata=0)).replace(b'ta":0', b'ta":' + MANY), 400),
        ("/batches", b'{"requests":' + MANY + b"}", 400),
        ("/batches", MANY, 400),
        ("/async/embeddings", b'{"a":' + MANY + b"}", 200),
        ("/batches/batch_x/rerun", b'{"lines":' + MANY + b"}", 400),
    ],
)
async def test_a_body_makes_few_objects(client, path, content, status):
    """Hundreds of thousands of lists are text, or refused: a parser would hold up all other requests."""
    tracemalloc.start()
    try:
        answer = await client.post(path, content=content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code == status, answer.text
    assert peak < 24 * len(content), "a list has 56 bytes and its place in another"


@pytest.mark.parametrize("text", [b'"\xff"', b'"\\ud800"', b"NaN", b"[1,]", b"01"])
async def test_a_body_is_json(client, text):
    """In UTF-8, also where it is not parsed."""
    content = orjson.dumps(body(request(body={"a": 0}))).replace(b'"a":0', b'"a":' + text)
    for path in ("/batches", "/async/embeddings"):
        answer = await client.post(path, content=content)
        assert (answer.status_code, "parse" in answer.json()["error"]["message"]) == (400, True)


async def test_bytes_are_bounded(deps, client):
    """Those of the body, and those of a line."""
    long = request(body={"input": "x" * inline.BYTES_MAX})
    assert (await client.post("/batches", json=body(long))).status_code == 413
    small = Settings(line_bytes_max=65_536)
    async with client_of(replace(deps, settings=small)) as other:
        answer = await other.post("/batches", json=body(request(), request("2", body={"input": "x" * 65_536})))
    assert (answer.status_code, answer.json()["error"]["param"]) == (413, "requests[1]")
    assert [key async for key in deps.store.keys("files/")] == []


async def test_a_repeated_create_makes_one_batch_and_one_file(client, deps):
    """With a key; the same key with other requests is refused, and leaves no file."""
    first = (await client.post("/batches", json=body(request()), headers=KEY)).json()
    again = (await client.post("/batches", json=body(request()), headers=KEY)).json()
    other = await client.post("/batches", json=body(request("2")), headers=KEY)
    assert again["id"] == first["id"]
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert {command.batch.id for command in commands(deps)} == {first["id"]}
    assert await files(client) == [first["input_file_id"]]
    assert len([key async for key in deps.store.keys("files/")]) == 1


async def test_a_key_outlives_its_claim(tmp_path, client, deps):
    """A process that knows the batch, and no claim, compares the content of the input."""
    first = Batch.model_validate((await client.post("/batches", json=body(request()), headers=KEY)).json())
    source = deps.view.file("p", first.input_file_id)
    async with open_dependencies(tmp_path / "other") as late, client_of(late) as other:
        late.view.put_file(source, 1)
        late.view.put_batch(BatchRecord(project="p", batch=first))
        assert (await other.post("/batches", json=body(request()), headers=KEY)).json()["id"] == first.id
        assert (await other.post("/batches", json=body(request("2")), headers=KEY)).status_code == 409
        assert commands(late) == []


async def test_the_input_is_deleted_with_its_batch(client, deps):
    """It has no other owner."""
    made = Batch.model_validate((await client.post("/batches", json=body(request()))).json())
    ended = made.model_copy(update={"status": Status.COMPLETED})
    deps.view.put_batch(BatchRecord(project="p", batch=ended))
    assert (await client.delete(f"/batches/{made.id}")).status_code == 200
    assert await files(client) == []


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.floats(allow_nan=False) | st.text(),
    st.lists,
    max_leaves=5,
)
_bodies = st.dictionaries(st.text(), _json, max_size=3)


@given(st.dictionaries(st.text(min_size=1, max_size=20), _bodies, min_size=1))
@examples(deadline=None)
def test_lines_have_what_the_requests_had(found):
    """Each line is one line, and parses to the request, whatever the client writes between the tokens."""
    content = orjson.dumps(
        body(*(request(custom_id, body=fields) for custom_id, fields in found.items())),
        option=orjson.OPT_INDENT_2,
    )
    made = reading.body(NewBatch, content, SETTINGS)
    text = b"".join(inline.lines(made.requests, EMBEDDINGS, bytes_max=1 << 20))
    parsed = [lines.parse(line) for line in text.split(b"\n")[:-1]]
    assert [(orjson.loads(bytes(line.custom_id)), orjson.loads(bytes(line.body))) for line in parsed] == [
        (custom_id, orjson.loads(orjson.dumps(fields))) for custom_id, fields in found.items()
    ]
