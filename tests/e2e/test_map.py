"""`tidemill map` and `tidemill embed` against a whole service: a table in, a table out, and nothing is lost."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pytest
from pyarrow import parquet
from support.backend import Behaviour, well
from support.stack import KEY
from support.waiting import WAIT_SECONDS_MAX, wait_until

SCHEMA = {
    "type": "object",
    "properties": {"stars": {"type": "integer", "minimum": 1, "maximum": 5}, "why": {"type": "string"}},
    "required": ["stars", "why"],
    "additionalProperties": False,
}

pytestmark = pytest.mark.e2e


@pytest.fixture
def tidemill(stack, backend, tmp_path):
    """Start a command in the folder of the test."""
    backend.rule = well

    def start(*words):
        command = ["env", "--default-signal=INT", sys.executable, "-m", "tidemill", *words]
        where = ["--base-url", stack.api, "--api-key", KEY]
        return subprocess.Popen([*command, *where], cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    return start


def finished(process):
    """Exit code and stderr of a command."""
    _, err = process.communicate(timeout=WAIT_SECONDS_MAX)
    return process.returncode, err


def passages(path, count):
    """Write a table with a row for each passage; the third has no text."""
    texts = [None if number == 2 else f"passage {number}" for number in range(count)]
    table = pa.table({"id": list(range(count)), "text": texts, "tags": [["a"], None] * (count // 2)})
    parquet.write_table(table, path, row_group_size=64)
    return table


def test_embeddings_join_their_rows_after_ctrl_c(tidemill, backend, tmp_path):
    """The command goes on with the same rows, asks each once, and the vectors are typed."""
    table = passages(tmp_path / "in.parquet", 300)
    words = ("embed", "in.parquet", "--model", "embed", "--column", "text", "-o", "out.parquet")

    def slow(body, nth):
        return replace(well(body, nth), latency_seconds=0.05)

    backend.rule = slow
    first = tidemill(*words)
    wait_until(lambda: backend.calls >= 100, "a third of the calls")
    first.send_signal(signal.SIGINT)
    code, err = finished(first)
    assert (code, (tmp_path / "out.parquet").exists()) == (130, False), err
    assert "The same command goes on." in err
    code, err = finished(tidemill(*words))
    assert code == 3, err
    assert "Resuming in.parquet" in err
    assert "299 of 300 rows answered, 1 with an error" in err
    found = parquet.read_table(tmp_path / "out.parquet")
    assert found.schema.field("embedding").type == pa.list_(pa.float32(), 8)
    assert found.select(table.column_names).to_pylist() == table.to_pylist()
    assert [row for row in found.to_pylist() if row["error"]] == [
        {"id": 2, "text": None, "tags": ["a"], "embedding": None, "error": "text is null", "attempts": 0,
         "input_tokens": 0, "output_tokens": 0, "cost": 0.0}
    ]  # fmt: skip
    assert (backend.calls, backend.repeats) == (299, 0)
    assert not (tmp_path / "out.parquet.tidemill").exists()
    code, err = finished(tidemill(*words))
    assert (code, "--force overwrites it" in err) == (2, True)


def chat(text):
    """A reply with this answer."""
    reply = {
        "id": "c", "object": "chat.completion", "created": 1, "model": "chat",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
    }  # fmt: skip
    return Behaviour(body=json.dumps(reply).encode())


def breaks_the_schema(body, nth):
    """Every fifth passage gets a wrong answer first, and every tenth one always."""
    del nth
    messages = body["messages"]
    number = int(messages[1]["content"].removeprefix("Rate: passage ").split()[0])
    assert body["response_format"]["json_schema"]["strict"] is True
    if number % 10 == 9:
        return chat('{"stars": 9, "why": "many"}')
    if number % 5 == 0 and len(messages) == 2:
        return chat(f'```json {{"stars": 1, "why": "{number}"}} ```')
    return chat(json.dumps({"stars": 1 + number % 5, "why": str(number)}))


def test_answers_that_break_the_schema_are_repaired_or_listed(tidemill, stack, backend, tmp_path):
    """No wrong answer goes unnoticed; a repair is a batch that names the first one."""
    texts = [f"passage {number}" for number in range(100)]
    (tmp_path / "in.csv").write_text("text\n" + "".join(f"{text}\n" for text in texts))
    (tmp_path / "prompt.md").write_text("Rate: {{ text }} now")
    (tmp_path / "system.md").write_text("You rate passages.")
    (tmp_path / "review.json").write_text(json.dumps(SCHEMA))
    backend.rule = breaks_the_schema
    words = (
        "map", "in.csv", "--model", "chat", "--prompt", "prompt.md", "--system", "system.md",
        "--schema", "review.json", "--repairs", "1", "-o", "out.parquet",
    )  # fmt: skip
    code, err = finished(tidemill(*words))
    assert code == 3, err
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["text"] for row in rows] == texts
    for number, row in enumerate(rows):
        if number % 10 == 9:
            fault = "invalid_output: at /stars: it is greater than the maximum of 5"
            assert (row["stars"], row["error"], row["attempts"]) == (None, fault, 2)
        else:
            assert (row["stars"], row["why"], row["error"]) == (1 + number % 5, str(number), None)
            assert row["attempts"] == (2 if number % 5 == 0 else 1)
            assert row["input_tokens"] == 9 * row["attempts"]
    assert "10 x invalid_output" in err
    listing = subprocess.run(
        [sys.executable, "-m", "tidemill", "list", "--limit", "4", "--base-url", stack.api, "--api-key", KEY],
        capture_output=True, check=True, timeout=WAIT_SECONDS_MAX,
    )  # fmt: skip
    batches = {each["id"]: each["tidemill"] for each in map(json.loads, listing.stdout.splitlines())}
    assert sum(each["rerun_of"] in batches for each in batches.values()) == 2
    asked = [json.loads(body)["messages"] for body in backend.bodies if "does not fit" in body]
    assert len(asked) == 30
    assert all("it is not JSON" in each[-1]["content"] or "maximum of 5" in each[-1]["content"] for each in asked)
    calls, backend.rule = backend.calls, lambda *_: chat('{"stars": 5, "why": "at last"}')
    code, err = finished(tidemill(*words, "--retry-failed"))
    assert (code, backend.calls - calls, "out.parquet: 10 rows with an error" in err) == (0, 10, True), err
    assert "100 of 100 rows answered" in err
    for number, row in enumerate(parquet.read_table(tmp_path / "out.parquet").to_pylist()):
        again = {
            "answer": '{"stars": 5, "why": "at last"}',
            "stars": 5,
            "why": "at last",
            "error": None,
            "attempts": 3,
        }
        tokens = {"input_tokens": 27, "output_tokens": 12}
        assert row == ({**rows[number], **again, **tokens} if number % 10 == 9 else rows[number])


def test_a_mistake_costs_nothing(tidemill, backend, tmp_path):
    """The command finds it before any call, and the next command starts afresh."""
    passages(tmp_path / "in.parquet", 10)
    words = ("embed", "in.parquet", "--column", "text", "-o", "out.csv", "--model")
    for more, said, exit_code in (
        (("--keep", "txt"), "columns are id, text, tags", 2),
        ((), "'none' is not supported", 4),
    ):
        code, err = finished(tidemill(*words, "none", *more))
        assert (code, said in err) == (exit_code, True), err
    code, err = finished(tidemill(*words, "embed", "--keep", "id", "--dry-run"))
    assert code == 0, err
    assert "10 rows: about" in err
    assert backend.calls == 4
    code, err = finished(tidemill(*words, "embed", "--keep", "id"))
    assert (code, backend.calls, backend.repeats) == (3, 9, 0), err
    head, *_ = (tmp_path / "out.csv").read_text().splitlines()
    assert head == "id,embedding,error,attempts,input_tokens,output_tokens,cost"
