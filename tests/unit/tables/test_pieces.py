"""Rows and their results: each row once, with its last answer, typed, or with the reason why it has none."""

import base64
import io
import json
import struct

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import csv, feather, ipc, parquet

from tidemill.tables import TableError, pieces, sinks
from tidemill.tables.answers import is_strict
from tidemill.tables.columns import ChatReader, VectorReader, sized
from tidemill.tables.pieces import FAULT, Round
from tidemill.tables.replies import failure_of
from tidemill.tables.requests import Chats

REVIEW = {
    "type": "object",
    "properties": {
        "stars": {"type": "integer"},
        "mood": {"$ref": "#/$defs/mood"},
        "score": {"type": ["number", "null"]},
        "parts": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
        "any": {},
    },
    "required": ["stars"],
    "$defs": {"mood": {"enum": ["good", "bad", None]}},
}


def result(number, content, **more):
    """A line of an output file with an answer to a chat."""
    body = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
    return {
        "id": "r",
        "custom_id": str(number),
        "response": {"status_code": 200, "body": body},
        "error": None,
        "tidemill": {"attempts": 1, "input_tokens": 10, "output_tokens": 2, **more},
    }


def embedded(number, vector):
    """A line of an output file with an embedding."""
    body = {"data": [{"embedding": vector}]}
    return {"custom_id": str(number), "response": {"status_code": 200, "body": body}, "error": None}


def failure(number, code, message, status=None, body=None):
    """A line of an error file."""
    response = None if status is None else {"status_code": status, "body": body}
    return {"custom_id": str(number), "response": response, "error": {"code": code, "message": message}}


def round_of(folder, name, output, errors, prices=(0.5, 2.0)):
    """The files of a batch."""
    paths = [folder / f"{name}.{kind}" for kind in ("requests", "output", "errors")]
    requests = [{"custom_id": line["custom_id"], "body": {"messages": []}} for line in output + errors]
    requests.sort(key=lambda line: int(line["custom_id"]))
    for path, lines in zip(paths, (requests, output, errors), strict=True):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Round(requests=paths[0], output=paths[1], errors=paths[2], prices=prices)


def joined(folder, rounds, reader, faults, first=1):
    """The rows of a part with their results."""
    batch = pa.record_batch({"id": list(range(len(faults))), FAULT: pa.array(faults, pa.string())})
    with ipc.new_stream(folder / "rows.arrow", batch.schema) as sink:
        sink.write_batch(batch)
    target = io.BytesIO()
    pieces.write(target, folder / "rows.arrow", first, rounds, reader)
    return ipc.open_stream(target.getvalue()).read_all()


def test_answers_become_typed_columns(tmp_path):
    """By the schema; without a value they are null, and what has several types is JSON."""
    answer = {"stars": 4, "mood": "good", "score": 1, "parts": [{"name": "a"}], "any": [1, "x"]}
    lines = [result(1, json.dumps(answer)), result(2, '{"stars": 1.0}')]
    found = joined(tmp_path, [round_of(tmp_path, "0", lines, [])], ChatReader(REVIEW), [None, None])
    parts = pa.list_(pa.struct([pa.field("name", pa.string())]))
    types = {"stars": pa.int64(), "mood": pa.string(), "score": pa.float64(), "parts": parts, "any": pa.string()}
    assert {name: found.schema.field(name).type for name in types} == types
    first, second = found.to_pylist()
    assert {name: first[name] for name in answer} == {**answer, "any": '[1,"x"]'}
    assert (second["stars"], second["mood"], second["error"]) == (1, None, None)
    assert (first["attempts"], first["input_tokens"], first["output_tokens"], first["cost"]) == (1, 10, 2, 9.0)


def test_each_row_has_its_last_answer(tmp_path):
    """Rows that were asked again add up; errors say what the service or the check said."""
    refused = failure(14, None, None, 400, {"error": {"message": "bad", "code": 400}})
    asked = [result(11, "no"), result(13, '{"stars": "x"}'), result(15, "{")]
    again = [result(11, '{"stars": 3}', attempts=2), result(13, '{"stars": 9.5}')]
    rounds = [
        round_of(tmp_path, "0", asked, [failure(12, "batch_expired", "too late"), refused]),
        round_of(tmp_path, "1", again, [failure(15, "batch_cancelled", "stopped")]),
    ]
    faults = [*[None] * 5, "its text is empty"]
    found = joined(tmp_path, rounds, ChatReader(REVIEW), faults, first=11)
    rows = found.to_pylist()
    assert [row["attempts"] for row in rows] == [3, 0, 2, 1, 1, 0]
    assert (rows[0]["stars"], rows[0]["error"], rows[0]["input_tokens"]) == (3, None, 20)
    errors = [row["error"] for row in rows[1:]]
    assert errors[0] == "batch_expired: too late"
    assert errors[1] == 'invalid_output: at /stars: it is not of type "integer"'
    assert (rows[2]["answer"], rows[2]["stars"]) == ('{"stars": 9.5}', None)
    assert errors[2] == "400: bad"
    assert errors[3].startswith("batch_cancelled")
    assert errors[4] == "its text is empty"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ({"message": "too long", "type": 400, "code": "x"}, "400: too long"),
        ({"message": "too long", "type": ["a"], "code": 1.5}, "400: too long"),
        ("too long", "400: too long"),
        ({"message": ["a"]}, '400: {"error":{"message":["a"]}}'),
        ({"code": 7}, '400: {"error":{"code":7}}'),
        ({}, '400: {"error":{}}'),
    ],
)
def test_an_error_of_a_server_may_have_any_form(error, said):
    """The row has its message; the whole reply only if that has none."""
    response = {"status_code": 400, "request_id": "r", "body": {"error": error}}
    assert failure_of(orjson.dumps({"custom_id": "1", "response": response, "error": None})).why == said


def test_a_row_without_a_result_says_so(tmp_path):
    """No row is silently empty; lines out of order are an error."""
    found = joined(tmp_path, [round_of(tmp_path, "0", [result(2, "{}")], [])], ChatReader(None), [None, None])
    assert found.to_pylist()[0]["error"] == "the service returned no result"
    odd = round_of(tmp_path, "0", [result(2, ""), result(1, "")], [])
    with pytest.raises(TableError, match="row 1 comes after row 2"):
        joined(tmp_path, [odd], ChatReader(None), [None, None])


@pytest.mark.parametrize(
    ("output", "errors", "expected"),
    [
        ([1, 3], [4], (0, 0)),
        ([1], [3], (1, 0)),
        ([1, 2, 3, 4], [], (0, 1)),
        ([1, 3, 4], [4], (0, 1)),
        ([1, 3, 4, 5, 9], [], (0, 2)),
        ([], [], (3, 0)),
    ],
)
def test_a_join_counts_what_is_missing_or_foreign(tmp_path, output, errors, expected):
    """Row 2 was not asked: a result of it is foreign, as one of a row that has another, or of no row."""
    files = round_of(
        tmp_path, "0", [result(each, "{}") for each in output], [failure(each, "c", "m") for each in errors]
    )
    faults = [None, "its text is empty", None, None]
    batch = pa.record_batch({"id": list(range(4)), FAULT: pa.array(faults, pa.string())})
    with ipc.new_stream(tmp_path / "rows.arrow", batch.schema) as sink:
        sink.write_batch(batch)
    found = pieces.write(io.BytesIO(), tmp_path / "rows.arrow", 1, [files], ChatReader(None))
    assert (found.missing, found.foreign) == expected


@pytest.mark.parametrize("line", [b"{\n", b'{"custom_id":"a"}\n', b'{"custom_id":[1]}\n', b"[" * 100_000 + b"\n"])
def test_a_line_that_is_no_result_is_an_error(tmp_path, line):
    """It does not end the process."""
    path = tmp_path / "output"
    path.write_bytes(line)
    with pytest.raises(TableError, match="not the result of a row"):
        pieces.Lines(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"stars": 99999999999999999999}', "64 bits"),
        ('{"stars": 1, "score": 9007199254740993}', "exact"),
        (None, "no text"),
        ("\ud800", "malformed"),
    ],
)
def test_what_a_column_cannot_hold_is_an_error(tmp_path, content, said):
    """Never a value that differs from the answer."""
    row = joined(
        tmp_path, [round_of(tmp_path, "0", [result(1, content)], [])], ChatReader(REVIEW), [None]
    ).to_pylist()[0]
    assert said in row["error"]
    assert row["stars"] is None


@pytest.mark.parametrize("content", [{"type": "text", "text": "x"}, 7])
def test_an_answer_of_an_odd_form_costs_its_tokens(tmp_path, content):
    """As in the bill of its batch: its row says that it is malformed."""
    line = result(1, content, attempts=2)
    (row,) = joined(tmp_path, [round_of(tmp_path, "0", [line], [])], ChatReader(None), [None]).to_pylist()
    assert "malformed" in row["error"]
    assert (row["attempts"], row["input_tokens"], row["output_tokens"], row["cost"]) == (2, 10, 2, 9.0)


@pytest.mark.parametrize(
    ("content", "reason", "answer", "said"),
    [
        (
            "The tide m",
            "length",
            "The tide m",
            "incomplete: the answer is not whole; it ends at the bound of its tokens",
        ),
        ("The", "content_filter", "The", "incomplete: the answer is not whole; a filter of the server cut it"),
        (
            "",
            "length",
            None,
            "invalid_output: the answer has no text (finish_reason length); it ends at the bound",
        ),
        ("", "stop", None, "invalid_output: the answer has no text (finish_reason stop)"),
        ([{"type": "thinking", "text": "Hm."}, {"type": "text", "text": "ebb"}], "stop", "ebb", None),
    ],
)
def test_an_answer_that_is_not_whole_has_an_error(tmp_path, content, reason, answer, said):
    """Its text is there all the same."""
    line = result(1, content)
    line["response"]["body"]["choices"][0]["finish_reason"] = reason
    (row,) = joined(tmp_path, [round_of(tmp_path, "0", [line], [])], ChatReader(None), [None]).to_pylist()
    assert row["answer"] == answer
    assert row["error"] == said if said is None else row["error"].startswith(said)


def test_json_that_fits_is_whole(tmp_path):
    """However the server ended it."""
    line = result(1, '{"stars": 4}')
    line["response"]["body"]["choices"][0]["finish_reason"] = "length"
    (row,) = joined(tmp_path, [round_of(tmp_path, "0", [line], [])], ChatReader(REVIEW), [None]).to_pylist()
    assert (row["stars"], row["error"]) == (4, None)


def test_a_line_without_counts_has_no_tokens(tmp_path):
    """They are unknown; without prices the cost is unknown, too."""
    lines = [result(1, "a"), result(2, "a", input_tokens=None, output_tokens=None)]
    found = joined(tmp_path, [round_of(tmp_path, "0", lines, [])], ChatReader(None), [None, None]).to_pylist()
    assert [(row["input_tokens"], row["cost"]) for row in found] == [(10, 9.0), (0, 0.0)]
    found = joined(tmp_path, [round_of(tmp_path, "0", lines, [], None)], ChatReader(None), [None] * 2).to_pylist()
    assert found[0]["cost"] is None


def test_columns_of_the_source_keep_their_names():
    """A new column of the same name gets another."""
    names = [field.name for field in pieces.added(["error", "answer", "answer_answer"], ChatReader(None))]
    assert names[:2] == ["answer_answer_answer", "answer_error"]


def test_a_property_takes_no_column_of_the_result():
    """Whoever filters by `error` would take the answers for failures."""
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in ("cost", "answer", "error")}}
    facts = ["error", "attempts", "input_tokens", "output_tokens", "cost"]
    names = [field.name for field in pieces.added(["text"], ChatReader(schema))]
    assert names == ["answer", "answer_cost", "answer_answer", "answer_error", *facts]
    names = [field.name for field in pieces.added(["error"], ChatReader(schema))]
    assert names == [
        "answer",
        "answer_cost",
        "answer_answer",
        "answer_answer_error",
        "answer_error",
        *facts[1:-1],
        "cost",
    ]


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(floats, min_size=3, max_size=3), min_size=1, max_size=4), st.booleans())
def test_vectors_are_exact(tmp_path_factory, vectors, as_text):
    """As decimals and as base64."""
    folder = tmp_path_factory.mktemp("vectors")
    sent = [base64.b64encode(struct.pack("<3f", *vector)).decode() if as_text else vector for vector in vectors]
    lines = [embedded(number, vector) for number, vector in enumerate(sent, start=1)]
    found = joined(folder, [round_of(folder, "0", lines, [])], VectorReader(), [None] * len(vectors))
    column, odd = sized(found.column("embedding").combine_chunks(), 12)
    assert (column.to_pylist(), odd, column.type) == (vectors, [], pa.list_(pa.float32(), 3))


@pytest.mark.parametrize(
    "vector", [[], [1e300], "a", "AAA=", base64.b64encode(struct.pack("<f", float("nan"))).decode()]
)
def test_a_malformed_vector_is_an_error(tmp_path, vector):
    """One of another length is found when all are there."""
    found = joined(tmp_path, [round_of(tmp_path, "0", [embedded(1, vector)], [])], VectorReader(), [None])
    assert "embedding" in found.to_pylist()[0]["error"]
    column, odd = sized(pa.array([b"\0" * 8, b"\0" * 4, None], pa.binary()), 8)
    assert (column.to_pylist(), odd) == ([[0.0, 0.0], None, None], [1])


def test_repairs_name_the_fault(tmp_path):
    """Answers that do not fit are asked again, also if the service has refused them; other failures are not."""
    chats = Chats(model="m", prompt=None, schema=REVIEW)
    body = {"choices": [{"message": {"content": "refused"}}]}
    errors = [failure(3, "invalid_output", "at /stars: wrong", 200, body), failure(4, "server_error", "no")]
    found = round_of(tmp_path, "0", [result(1, '{"stars": 1}'), result(2, "none")], errors)
    lines = [json.loads(line) for line in pieces.repairs(found, chats, ChatReader(REVIEW))]
    assert [line["custom_id"] for line in lines] == ["2", "3"]
    answer, request = lines[0]["body"]["messages"]
    assert answer == {"role": "assistant", "content": "none"}
    assert "it is not JSON" in request["content"]
    answer, request = lines[1]["body"]["messages"]
    assert (answer["content"], "at /stars: wrong" in request["content"]) == ("refused", True)


def test_strict_mode_needs_all_properties():
    """Otherwise servers that have it refuse the schema."""
    assert not is_strict(REVIEW)
    inner = {"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False}
    assert is_strict({"type": "array", "items": inner})


TABLE = pa.record_batch({
    "id": pa.array([1, None], pa.int64()),
    "text": ['a "b"\r\nc,', None],
    "who": [{"a": [1.5, None]}, None],
    "vector": pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)),
    "at": pa.array([0, None], pa.timestamp("s")),
    "raw": pa.array([b"\xff", None], pa.binary()),
})  # fmt: skip


@pytest.mark.parametrize("suffix", sinks.SUFFIXES)
def test_every_format_can_be_read_back(tmp_path, suffix):
    """Typed formats exactly, the others as far as they go."""
    path = tmp_path / f"a{suffix}"
    with path.open("wb") as file, sinks.writing(file, suffix, TABLE.schema) as sink:
        sink.write(TABLE)
        sink.write(TABLE)
    expected = pa.Table.from_batches([TABLE, TABLE])
    if suffix == ".parquet":
        found = parquet.read_table(path)
        assert found.to_pylist() == expected.to_pylist()
        assert found.schema.field("vector").type == pa.list_(pa.float32(), 2)
    elif suffix in {".arrow", ".feather"}:
        assert feather.read_table(path).equals(expected)
    elif suffix in {".jsonl", ".ndjson"}:
        first, second, *_ = [json.loads(line) for line in path.read_text().splitlines()]
        assert (first["who"], first["vector"], second["text"]) == ({"a": [1.5, None]}, [1.0, 2.0], None)
    else:
        parsing = csv.ParseOptions(newlines_in_values=True, delimiter="," if suffix == ".csv" else "\t")
        rows = csv.read_csv(path, parse_options=parsing).to_pylist()
        assert (len(rows), rows[0]["id"], rows[0]["text"]) == (4, 1, 'a "b"\r\nc,')
        assert json.loads(rows[0]["who"]) == {"a": [1.5, None]}
