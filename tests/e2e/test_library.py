"""The Python client against a whole service, sync and async."""

import json

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from support.backend import Behaviour, as_told
from support.stack import KEY
from support.waiting import wait_until

from tidemill import AsyncTidemill, Refused, Tidemill, UsageError

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

LINES = 20
HELD = 12


def requests(count=LINES, text="t"):
    for number in range(count):
        body = {"model": "embed", "input": f"{text} {number}"}
        yield {"custom_id": f"r{number}", "method": "POST", "url": "/v1/embeddings", "body": body}


class Answers:
    """One line waits until the test lets it go."""

    is_held = True

    def __call__(self, body, nth):
        del nth
        if self.is_held and body["input"].endswith(f" {HELD}"):
            return Behaviour(status=429, headers={"retry-after": "1"})
        return Behaviour()


@pytest.fixture
def client(stack, backend, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    backend.rule = as_told
    with Tidemill(stack.api, KEY) as client:
        yield client


def written(folder, lines):
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


async def test_results_come_in_order_while_the_batch_runs(stack, backend):
    """Each result comes as soon as the earlier ones are there; reading may resume after any of them."""
    answers = Answers()
    backend.reset(answers)
    async with AsyncTidemill(stack.api, KEY) as client:
        batch = await client.submit(requests())
        results = batch.results()
        first = [(await anext(results)).custom_id for _ in range(HELD)]
        assert first == [f"r{number}" for number in range(HELD)]
        assert batch.status == "in_progress"
        answers.is_held = False
        rest = [line async for line in results]
        assert [line.index for line in rest] == list(range(HELD, LINES))
        assert all(line.ok and line.embedding for line in rest)
        assert [line.index async for line in batch.results(after=LINES - 3)] == [LINES - 2, LINES - 1]
        assert (await batch.refresh()).status == "completed"


def test_a_key_has_one_batch(client, tmp_path):
    """From lines and from a file of the same lines; other lines need another key."""
    first = client.submit(requests(3), key="nightly", metadata={"name": "night"})
    again = client.submit(requests(3), key="nightly")
    assert first.id == again.id
    assert first.state.metadata["name"] == "night"
    with pytest.raises(UsageError, match=f"another input, {first.id}"):
        client.submit(requests(4), key="nightly")
    assert client.submit(requests(4), key="another").wait().status == "completed"
    wait_until(lambda: client.batch(first.id).status == "completed", "the end of the first batch")
    found = client.submit(requests(3), key="nightly").download(tmp_path / "out.jsonl")
    assert (found.completed, found.damage) == (3, ())


def test_a_key_gets_another_batch_if_its_own_did_not_complete(client):
    """A batch whose input is refused has no results; reading them says why, and the key is free again."""
    lines = [*requests(1), *requests(1)]
    first = client.submit(lines, key="doomed").wait()
    assert first.status == "failed"
    with pytest.raises(UsageError, match=rf"{first.id} is failed .*line 2: "):
        list(first.results())
    again = client.submit(lines, key="doomed")
    assert again.id != first.id


def test_a_file_is_run(client, tmp_path):
    """Answers and failed lines are read back, and no file is overwritten by mistake."""
    chats = [
        {"custom_id": "good", "body": {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}},
        {
            "custom_id": "bad",
            "body": {"model": "chat", "messages": [{"role": "user", "content": "x"}], "stop": "refuse"},
        },
    ]
    source = written(tmp_path, [{"method": "POST", "url": "/v1/chat/completions", **line} for line in chats])
    run = client.run(source)
    assert not run.ok
    assert run.output == tmp_path / "in.output.jsonl"
    good, bad = run.lines()
    assert (good.custom_id, good.ok, bad.custom_id, bad.ok) == ("good", True, "bad", False)
    assert good.text
    assert bad.status_code == 400
    with pytest.raises(UsageError, match="already exists"):
        client.run(source)
    assert client.run(source, overwrite=True).receipt.lines == 2


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame, pa.table])
def test_a_table_is_embedded(client, library):
    """The result has the same library, its columns and a vector for each row; a row without text has an error."""
    frame = library({"id": [1, 2, 3], "text": ["one", None, "three"]})
    found = client.embed(frame, model="embed", column="text")
    assert isinstance(found, pa.Table if library is pa.table else library)
    rows = pa.table(found).to_pylist()
    assert [row["id"] for row in rows] == [1, 2, 3]
    assert [row["embedding"] is None for row in rows] == [False, True, False]
    assert [bool(row["error"]) for row in rows] == [False, True, False]


def test_a_table_is_mapped(client):
    """With a prompt as text; errors name a faulty template, and an argument that is not a table."""
    frame = pd.DataFrame({"id": pd.array([2**60 + 1, None], "Int64"), "text": ["good", "bad"]}, index=["a", "b"])
    found = client.map(frame, model="chat", prompt="Is this good? {{ text }}")
    pd.testing.assert_frame_equal(found[["id", "text"]], frame)
    assert found["answer"].notna().all()
    with pytest.raises(UsageError, match="txet"):
        client.map(frame, model="chat", prompt="{{ txet }}")
    with pytest.raises(UsageError, match="a list is not a table"):
        client.map([1], model="chat", prompt="x")
    with pytest.raises(UsageError, match="two columns have one name"):
        client.map(pl.DataFrame({"a": [1]}).to_arrow().append_column("a", [[2]]), model="chat", prompt="x")


def test_mistakes_are_named(client, stack, tmp_path):
    """A missing file, a line that is not JSON, a wrong key, an unknown batch."""
    with pytest.raises(UsageError, match=r"none\.jsonl: No such file"):
        client.submit(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="line 2 is not JSON"):
        client.submit([*requests(1), {"custom_id": object()}])
    with pytest.raises(UsageError, match="is empty"):
        client.submit([])
    with pytest.raises(Refused, match="No batch found"):
        client.batch("batch_" + "0" * 24)
    with Tidemill(stack.api, "sk-wrong") as stranger, pytest.raises(Refused, match="Incorrect API key"):
        stranger.submit(requests(1))
