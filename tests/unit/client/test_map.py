"""`tidemill map` against a stand-in of the service: neither a faulty answer nor its repair ends the run."""

import re
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pyarrow import ipc, parquet
from support.service import KEY, Batches

from tidemill.client import errors
from tidemill.client.errors import Exit, OtherService, Refused, UsageError
from tidemill.client.http.client import Client
from tidemill.client.maps.job import MapOptions, run
from tidemill.client.maps.task import ChatOptions, Task, chats
from tidemill.tables.sources.frames import FrameSource
from tidemill.tables.sources.opening import opened
from tidemill.terminal import Console

STARS = {"type": ["object", "null"], "properties": {"stars": {"type": "integer"}}, "required": ["stars"]}
LONG = "no JSON " * 1_000
"""A faulty answer that makes its repair 8 KB longer."""


@pytest.fixture
async def service() -> Any:
    """The stand-in with a batch for each request."""
    async with Batches() as service:
        yield service


def task_of(folder: Path, count: int, repairs: int = 1) -> Task:
    """A question about each of so many rows."""
    path = folder / "in.csv"
    path.write_text("text\n" + "".join(f"row {number}\n" for number in range(count)))
    options = ChatOptions(model="m", prompt="{{ text }}", schema=STARS, repairs=repairs)
    return chats(opened(str(path), {}), "in.csv", (), options, {})


def names(folder: Path) -> list[str]:
    """What a folder holds."""
    return [path.name for path in folder.iterdir()]


async def mapped(
    console: Console, service: Batches, task: Task, folder: Path, **options: Any
) -> tuple[Exit, list[dict[str, Any]]]:
    """The exit code and the rows of a run."""
    path = folder / "out.parquet"
    async with Client(service.url, KEY) as client:
        code = await run(console, client, task, MapOptions(output=str(path), tries=0, **options))
    return code, parquet.read_table(path).to_pylist()


async def test_the_sample_shows_bytes_of_the_source_by_their_number(
    service: Batches, console: Console, tmp_path: Path
) -> None:
    """Only those of an answer are a vector."""
    source = FrameSource(pa.table({"text": ["a"], "photo": [b"12345"]}))
    task = chats(source, "in", (), ChatOptions(model="m", prompt="{{ text }}"), {})
    async with Client(service.url, KEY) as client:
        await run(console, client, task, MapOptions(output=str(tmp_path / "out.parquet"), tries=1))
    said = console.export_text()
    assert "5 bytes" in said
    assert "float32" not in said


@pytest.mark.parametrize(("count", "rest"), [(1, "writes the table"), (3, "goes on with the other rows")])
async def test_a_dry_run_says_what_is_left(
    service: Batches, console: Console, tmp_path: Path, count: int, rest: str
) -> None:
    """The sample of a small table has all rows; the progress counts rows, as the summary does."""
    service.answer = lambda _: '{"stars": 5}'
    options = MapOptions(output=str(tmp_path / "out.parquet"), tries=2, is_dry=True)
    async with Client(service.url, KEY) as client:
        await run(console, client, task_of(tmp_path, count), options)
    said = " ".join(console.export_text().split())
    assert f"The same command without --dry-run {rest}." in said
    assert f"of {'1 row' if count == 1 else '2 rows'}" in said


async def test_a_table_that_cannot_be_read_leaves_no_journal(
    service: Batches, console: Console, tmp_path: Path
) -> None:
    """Nothing was asked, so the same command runs the mended table."""
    task = task_of(tmp_path, 2)
    (tmp_path / "in.csv").write_text('text\n"no end\n')
    with pytest.raises(UsageError, match=r"in.csv, line \d"):
        await mapped(console, service, task, tmp_path)
    assert not (tmp_path / "out.parquet.tidemill" / "plan.json").exists()
    code, rows = await mapped(console, service, task_of(tmp_path, 2), tmp_path)
    assert (code, len(rows)) == (Exit.SOME_FAILED, 2)


async def test_an_address_without_a_batch_api_leaves_no_journal(console: Console, tmp_path: Path) -> None:
    """Nothing was asked; the advice is to check the address."""

    async def refuse(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"detail": "Not Found"}, status=404)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    task, options = task_of(tmp_path, 2), MapOptions(output=str(tmp_path / "out.parquet"), tries=0)
    async with TestServer(app) as server, Client(str(server.make_url("/v1")), KEY) as client:
        for _ in range(2):
            with pytest.raises(OtherService, match=r"does not speak the Batch API: 404 at /v1/files$") as caught:
                await run(console, client, task, options)
            assert "--base-url" in str(errors.next_step(caught.value))
    assert names(tmp_path) == ["in.csv"]
    assert "Resuming" not in console.export_text()


async def test_a_refused_key_leaves_no_journal(service: Batches, console: Console, tmp_path: Path) -> None:
    """The user passes another one to the same command."""
    task, options = task_of(tmp_path, 2), MapOptions(output=str(tmp_path / "out.parquet"), tries=0)
    async with Client(service.url, "wrong") as client:
        with pytest.raises(Refused, match="Incorrect API key"):
            await run(console, client, task, options)
    assert names(tmp_path) == ["in.csv"]


async def test_a_gateway_that_answers_for_the_service_ends_no_run(
    service: Batches, console: Console, tmp_path: Path
) -> None:
    """To start over would pay for every row twice; the same command goes on."""
    service.answer = lambda _: '{"stars": 5}'
    service.down, service.down_status, service.down_body = 1, 404, "<h1>No backend</h1>"
    task = task_of(tmp_path, 2)
    with pytest.raises(OtherService, match="does not speak the Batch API"):
        await mapped(console, service, task, tmp_path)
    assert "0 parts done. The same command goes on." in console.export_text()
    code, rows = await mapped(console, service, task, tmp_path)
    assert (code, len(rows), len(service.inputs)) == (Exit.OK, 2, 1)


def test_rejected_requests_end_with_the_code_of_a_refused_input(console: Console, tmp_path: Path) -> None:
    """As `tidemill run` does."""

    async def rejected() -> Exit:
        async with Batches() as service:
            service.rejects.add(0)
            return (await mapped(console, service, task_of(tmp_path, 2), tmp_path))[0]

    assert errors.run(console, rejected) is Exit.FAILED


async def test_the_estimate_of_a_table_of_unknown_length_is_for_each_thousand_rows(
    service: Batches, console: Console, tmp_path: Path
) -> None:
    """A CSV is not counted first; 1,000 would read like its number of rows."""
    async with Client(service.url, KEY) as client:
        await run(console, client, task_of(tmp_path, 9), MapOptions(output=str(tmp_path / "out.csv"), tries=3))
    assert "each 1,000 rows: about 18,000 tokens in" in console.export_text()


async def test_a_sample_without_a_valid_answer_ends_the_run(
    service: Batches, console: Console, tmp_path: Path
) -> None:
    """All rows would be asked in vain; it shows what the model said, and a corrected command starts over."""
    options = MapOptions(output=str(tmp_path / "out.parquet"), tries=3)
    service.answer = lambda _: "It has 5 stars."
    async with Client(service.url, KEY) as client:
        assert await run(console, client, task_of(tmp_path, 9, repairs=0), options) is Exit.SOME_FAILED
        said = console.export_text()
        assert "No row of the sample has a valid answer." in said
        assert "It has 5 stars." in said
        assert [len(lines) for lines in service.inputs] == [3]
        service.answer = lambda line: '{"stars": 5}' if line["custom_id"] == "1" else "none"
        task = task_of(tmp_path, 9, repairs=1)
        assert await run(console, client, task, options) is Exit.SOME_FAILED
    assert len(parquet.read_table(tmp_path / "out.parquet")) == 9


async def test_a_sample_without_a_request_says_nothing(service: Batches, console: Console, tmp_path: Path) -> None:
    """The first rows may have no text; the others are asked."""
    path = tmp_path / "in.csv"
    path.write_text("text\n" + '""\n' * 3 + "row\n" * 2)
    options = ChatOptions(model="m", prompt="{{ text }}", schema=STARS)
    service.answer = lambda _: '{"stars": 5}'
    async with Client(service.url, KEY) as client:
        task = chats(opened(str(path), {}), "in.csv", (), options, {})
        await run(console, client, task, MapOptions(output=str(tmp_path / "out.parquet"), tries=3))
    stars = parquet.read_table(tmp_path / "out.parquet")["stars"].to_pylist()
    assert stars == [None, None, None, 5, 5]


def is_repair(line: dict[str, Any]) -> bool:
    """Whether a line asks again."""
    return len(line["body"]["messages"]) > 1


async def test_a_null_answer_has_null_properties(service: Batches, console: Console, tmp_path: Path) -> None:
    """Where the schema allows it, it is no fault."""
    service.answer = lambda line: "null" if line["custom_id"] == "1" else '{"stars": 2}'
    code, rows = await mapped(console, service, task_of(tmp_path, 2), tmp_path)
    assert code is Exit.OK
    assert [(row["stars"], row["answer"], row["error"]) for row in rows] == [
        (None, "null", None), (2, '{"stars": 2}', None),
    ]  # fmt: skip


async def test_repairs_fit_the_batches_of_the_service(service: Batches, console: Console, tmp_path: Path) -> None:
    """They are longer than the requests: a part's repairs take several batches, and are joined as one."""
    service.answer = lambda line: '{"stars": 1}' if is_repair(line) else LONG
    service.limits = {"file_bytes_max": 30_000}
    code, rows = await mapped(console, service, task_of(tmp_path, 10), tmp_path)
    assert code is Exit.OK
    assert [(row["stars"], row["attempts"], row["input_tokens"]) for row in rows] == [(1, 2, 18)] * 10
    sizes = [sum(len(orjson.dumps(line)) + 1 for line in lines) for lines in service.inputs]
    assert len(sizes) == 5
    assert max(sizes) <= 30_000


async def test_a_repair_that_is_too_long_is_not_sent(service: Batches, console: Console, tmp_path: Path) -> None:
    """The row keeps the fault of its answer."""
    service.answer = lambda line: '{"stars": 1}' if is_repair(line) else LONG if line["custom_id"] == "1" else "no"
    service.limits = {"line_bytes_max": 4_000}
    code, rows = await mapped(console, service, task_of(tmp_path, 2), tmp_path)
    assert code is Exit.SOME_FAILED
    assert [(row["stars"], row["attempts"]) for row in rows] == [(None, 1), (1, 2)]
    assert rows[0]["error"].startswith("invalid_output: it is not JSON")


async def test_a_rejected_repair_leaves_the_first_answers(
    service: Batches, console: Console, tmp_path: Path
) -> None:
    """The run ends, and says which batch was rejected and why."""
    service.answer = lambda line: "no" if line["custom_id"] == "2" else '{"stars": 1}'
    service.rejects = {1}
    code, rows = await mapped(console, service, task_of(tmp_path, 3, repairs=2), tmp_path)
    assert code is Exit.SOME_FAILED
    assert [(row["stars"], row["attempts"]) for row in rows] == [(1, 1), (None, 1), (1, 1)]
    assert "it is not JSON" in rows[1]["error"]
    assert len(service.inputs) == 2
    assert re.search(r"batch_1: repair rejected: It is too large", console.export_text())


async def test_a_row_without_a_result_is_a_fault_of_the_batch(
    service: Batches, console: Console, tmp_path: Path
) -> None:
    """The exit code and the summary say so, besides the row."""
    service.answer, service.drops = (lambda _: '{"stars": 1}'), {"2"}
    code, rows = await mapped(console, service, task_of(tmp_path, 3), tmp_path)
    assert code is Exit.INEXACT
    assert [row["error"] for row in rows] == [None, "the service returned no result", None]
    assert "3 rows asked, 1 missing, 0 foreign" in console.export_text()


async def test_rows_that_failed_are_asked_again(service: Batches, console: Console, tmp_path: Path) -> None:
    """These alone; the others keep their answers, and calls and tokens add up."""
    bad = {"row 1", "row 4", "row 8"}

    def answer(line: dict[str, Any]) -> str:
        text = line["body"]["messages"][-1]["content"]
        return "no" if text in bad else orjson.dumps({"stars": len(service.inputs)}).decode()

    service.answer, task = answer, task_of(tmp_path, 10, repairs=0)
    code, before = await mapped(console, service, task, tmp_path)
    assert code is Exit.SOME_FAILED
    assert "--retry-failed asks the rows with an error again" in console.export_text()
    bad.remove("row 4")
    bad.remove("row 8")
    again = await mapped(console, service, task, tmp_path, retry_failed=True)
    assert again[0] is Exit.SOME_FAILED
    asked = [line["body"]["messages"][-1]["content"] for line in service.inputs[1]]
    assert asked == ["row 1", "row 4", "row 8"]
    for number, (old, new) in enumerate(zip(before, again[1], strict=True)):
        if number in {4, 8}:
            assert (new["text"], new["stars"], new["error"]) == (old["text"], 2, None)
        else:
            assert {**new, "attempts": 1, "input_tokens": 9} == old
        assert (new["attempts"], new["input_tokens"]) == ((2, 18) if number in {1, 4, 8} else (1, 9))
    bad.clear()
    code, rows = await mapped(console, service, task, tmp_path, retry_failed=True)
    assert (code, [row["attempts"] for row in rows]) == (Exit.OK, [1, 3, 1, 1, 2, 1, 1, 1, 2, 1])
    code, same = await mapped(console, service, task, tmp_path, retry_failed=True)
    assert (code, same, len(service.inputs)) == (Exit.OK, rows, 3)


async def test_failed_rows_of_another_run_are_refused(
    service: Batches, client: Client, console: Console, tmp_path: Path
) -> None:
    """Answers to other requests are never joined."""
    service.answer = lambda _: "no"
    await mapped(console, service, task_of(tmp_path, 2), tmp_path)
    with pytest.raises(UsageError, match=r"out\.parquet is the table of other requests"):
        await mapped(console, service, task_of(tmp_path, 3), tmp_path, retry_failed=True)
    (tmp_path / "out.parquet").unlink()
    with pytest.raises(UsageError, match=r"out\.parquet does not exist"):
        await mapped(console, service, task_of(tmp_path, 3), tmp_path, retry_failed=True)
    with pytest.raises(UsageError, match="only a table in Parquet or Arrow"):
        await run(console, client, task_of(tmp_path, 2), MapOptions(output="out.csv", retry_failed=True))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".csv", ".jsonl"])
async def test_a_table_without_rows_has_columns(
    service: Batches, client: Client, console: Console, tmp_path: Path, suffix: str
) -> None:
    """The next step of a pipeline reads it as any other; no batch is made."""
    path = tmp_path / f"out{suffix}"
    code = await run(console, client, task_of(tmp_path, 0), MapOptions(output=str(path)))
    assert code is Exit.OK
    assert service.inputs == []
    names = ["text", "answer", "stars", "error", "attempts", "input_tokens", "output_tokens", "cost"]
    if suffix == ".parquet":
        found = parquet.read_table(path)
        assert (found.num_rows, found.schema.names) == (0, names)
    elif suffix == ".arrow":
        with ipc.open_file(path.read_bytes()) as reader:
            assert (reader.read_all().num_rows, reader.schema.names) == (0, names)
    else:
        assert path.read_text().splitlines() == ([",".join(names)] if suffix == ".csv" else [])


async def test_a_time_beyond_python_takes_no_answers_away(
    service: Batches, client: Client, console: Console, tmp_path: Path
) -> None:
    """It is in a column that is only kept; the answers were paid for."""
    days = pa.array([10**7, 0], pa.date32())
    parquet.write_table(pa.table({"text": ["a", "b"], "day": days}), tmp_path / "in.parquet")
    options = ChatOptions(model="m", prompt="{{ text }}", schema=STARS)
    task = chats(opened(str(tmp_path / "in.parquet"), {}), "in.parquet", ("text", "day"), options, {})
    service.answer = lambda _: '{"stars": 1}'
    path = tmp_path / "out.csv"
    code = await run(console, client, task, MapOptions(output=str(path)))
    assert code is Exit.OK
    assert [line.split(",")[1] for line in path.read_text().splitlines()] == ["day", "29349-01-26", "1970-01-01"]
