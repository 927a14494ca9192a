"""Result lines as Parquet."""

import base64
import io
import json
import struct
from contextlib import suppress

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tidemill.schemas.jsonl import line
from tidemill.tables import RowError, replies, result_lines
from tidemill.tables.result_lines import SCHEMA, converted

CALL = line.Call(attempts=2, server=b'"gpu-1"', seconds=0.5)


async def table(data: bytes, *, chunk: int = 1 << 20) -> pa.Table:
    """The table of a file that comes in chunks of this size."""

    async def chunks():
        for start in range(0, len(data), chunk):
            yield data[start : start + chunk]

    content = b"".join([piece async for piece in converted(chunks())])
    found = parquet.read_table(io.BytesIO(content))
    assert found.schema.equals(SCHEMA)
    return found


def answered(index: int, body: object, **changes) -> bytes:
    """A result line as results writes it."""
    fields = {"status": 200, "request_id": f"req_{index}", "call": CALL} | changes
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return line.answered("batch_1", index, b'"%d"' % index, body=text, **fields)


CHAT = {
    "object": "chat.completion", "model": "m",
    "choices": [{"message": {"content": "yes"}}, {"message": {"content": "no"}}],
}  # fmt: skip
RESPONSE = {
    "model": "m", "output": [{"content": [{"type": "output_text", "text": "a"}, {"text": "b"}]}],
}  # fmt: skip


@pytest.mark.parametrize("tokens", [None, (3, 1)])
@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (CHAT, "yes"),
        (RESPONSE, "ab"),
        ({"choices": [{"text": "t"}]}, "t"),
        ({"content": [{"type": "text", "text": "c"}]}, "c"),
        ({"choices": [{"message": {"content": None}}]}, None),
        ({"choices": [{"message": {"content": ""}}]}, ""),
        ({"choices": [{"message": {"content": None}}, {"message": {"content": "second"}}]}, None),
        (
            {
                "choices": [
                    {"message": {"content": [{"type": "thinking", "text": "Hm."}, {"text": "a"}, {"text": "b"}]}}
                ]
            },
            "ab",
        ),
        ({"choices": [{"message": {"content": None, "refusal": "no"}}]}, "no"),
        ({"choices": [{"message": {"content": None, "audio": {"data": "AA", "transcript": "said"}}}]}, "said"),
        ({"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]}, "no"),
        ({"text": "heard", "usage": {"seconds": 3}}, "heard"),
        ({"results": [{"score": 1}]}, None),
        ({"data": [{"b64_json": "x"}, {"b64_json": "y"}], "usage": {"input_tokens": 9}}, None),
    ],
)
async def test_the_answers_of_endpoints(body, answer, tokens):
    """The text of the model, and the tokens that the batch counts; the body is there in any case."""
    (row,) = (await table(answered(0, body, call=CALL._replace(tokens=tokens)))).to_pylist()
    assert (row["answer"], (row["input_tokens"], row["output_tokens"])) == (answer, tokens or (None, None))
    assert json.loads(row["body"]) == body
    assert (row["custom_id"], row["status_code"], row["request_id"]) == ("0", 200, "req_0")
    assert (row["attempts"], row["server"], row["embedding"], row["error_code"]) == (2, "gpu-1", None, None)


async def test_vectors_are_lists_of_float32():
    """From numbers and from base64; rows without one are null, and several stay in the body."""
    numbers = [0.5, -1.0, 2.0]
    coded = base64.b64encode(struct.pack("<3f", *numbers)).decode()
    bodies = [{"data": [{"embedding": numbers}]}, CHAT, {"data": [{"embedding": coded}]}, {"data": []},
              {"data": [{"embedding": numbers}] * 2}, {"data": [{"embedding": "no base64"}]}]  # fmt: skip
    rows = (await table(b"".join(answered(number, body) for number, body in enumerate(bodies)))).to_pylist()
    assert [row["embedding"] for row in rows] == [numbers, None, numbers, None, None, None]
    assert [row["body"] is None for row in rows] == [True, *[False] * 5], "base64 may be of other numbers"


async def test_errors_have_a_code_and_a_message():
    """Those of the service come before those of the server."""
    refused = {"error": {"message": "too long", "code": None, "type": "invalid_request_error"}}
    data = b"".join([
        answered(0, refused, status=400),
        answered(1, CHAT, error={"code": "invalid_output", "message": "no JSON"}),
        line.unanswered("batch_1", 2, b'"2"', code="batch_expired", message="late"),
        answered(3, {"error": {"message": "busy", "code": 429}}, status=429),
        answered(4, {"error": {"message": "too long", "type": 400}, "model": "m"}, status=400),
        answered(5, {"error": {"message": ["a"], "code": 1.5, "type": {}}, "model": "m"}, status=400),
        answered(6, {"error": "no such model", "model": "m"}, status=404),
        line.unanswered("batch_1", 7, b"null", code="invalid_json_line", message="no JSON"),
        answered(8, {"object": "error", "message": "too long", "type": "bad", "code": 400}, status=400),
        answered(9, {"detail": [{"msg": "field required"}]}, status=422),
    ])  # fmt: skip
    rows = (await table(data)).to_pylist()
    assert [(row["error_code"], row["error_message"]) for row in rows] == [
        ("invalid_request_error", "too long"),
        ("invalid_output", "no JSON"),
        ("batch_expired", "late"),
        ("429", "busy"),
        ("400", "too long"),
        ("1.5", '{"error": {"message": ["a"], "code": 1.5, "type": {}}, "model": "m"}'),
        (None, "no such model"),
        ("invalid_json_line", "no JSON"),
        ("400", "too long"),
        (None, "field required"),
    ]
    assert [row["status_code"] for row in rows[:8]] == [400, 200, None, 429, 400, 400, 404, None]
    assert [row["model"] for row in rows[4:8]] == ["m", "m", "m", None]
    assert [row["custom_id"] for row in rows[:8]] == [*map(str, range(7)), None]
    assert (rows[2]["body"], rows[2]["attempts"]) == (None, None)


async def test_reasoning_is_no_answer():
    """A reply of `/v1/responses` has it as an item of its own."""
    parts = [("reasoning", "reasoning_text", "Hm."), ("message", "output_text", "yes")]
    output = [{"type": item, "content": [{"type": part, "text": text}]} for item, part, text in parts]
    (row,) = (await table(answered(0, {"object": "response", "output": output}))).to_pylist()
    assert row["answer"] == "yes"


@pytest.mark.parametrize("is_billed", [False, True])
async def test_a_copy_counts_tokens_that_are_billed(is_billed):
    """It names the line whose answer it has."""
    original = answered(0, CHAT, call=CALL._replace(tokens=(3, 1)))
    text = line.copied("batch_1", 1, b'"1"', original, is_billed=is_billed)
    (row,) = (await table(text)).to_pylist()
    assert (row["copy_of"], row["answer"], row["input_tokens"]) == ("0", "yes", 3 if is_billed else 0)


async def test_a_file_without_lines_is_a_table_without_rows():
    """It has the columns."""
    assert (await table(b"")).num_rows == 0


async def test_a_large_file_is_written_in_groups(monkeypatch):
    """No more than some of its rows are in memory."""
    monkeypatch.setattr(result_lines, "BATCH_BYTES", 1 << 18)
    body = CHAT | {"choices": [{"message": {"content": "x" * 10_000}}]}
    found = b"".join(answered(number, body) for number in range(2_000))

    async def chunks():
        for start in range(0, len(found), 1 << 16):
            yield found[start : start + (1 << 16)]

    pieces = [piece async for piece in converted(chunks())]
    read = parquet.ParquetFile(io.BytesIO(b"".join(pieces)))
    assert read.metadata.num_row_groups > 3
    assert read.metadata.num_rows == 2_000
    assert len(pieces) > 3, "it was written at the end"


ODD = [
    answered(0, b'{"model":"\\ud800"}').strip(),
    answered(0, {"data": [1], "usage": "no"}).strip(),
    answered(0, {"usage": {"prompt_tokens": 10**30, "completion_tokens": -1}}).strip(),
    b"[]",
    b'{"custom_id":1}',
]


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=60).map(lambda data: b"x" + data) | st.sampled_from(ODD)), st.integers(1, 50))
async def test_no_line_ends_a_conversion(lines, chunk):
    """Each line has a row, whatever it holds."""
    found = await table(b"".join(each.replace(b"\n", b" ") + b"\n" for each in lines), chunk=chunk)
    assert found.num_rows == len(lines)


@pytest.mark.parametrize("levels", [100, 500, 900, 5_000])
@pytest.mark.parametrize("name", ["choices", "data", "other"])
async def test_a_reply_of_any_depth_is_a_row(name, levels):
    """A server may send what no decoder takes; the row has its text."""
    body = b'{"model":"m","%s":%s}' % (name.encode(), b"[" * levels + b"]" * levels)
    text = answered(0, body) + answered(1, CHAT)
    odd, good = (await table(text)).to_pylist()
    assert body.decode() in odd["body"]
    assert good["answer"] == "yes"
    for read in (replies.result_of, replies.failure_of):
        with suppress(RowError):
            read(answered(0, body))
