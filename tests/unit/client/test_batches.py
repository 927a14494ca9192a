"""What `tidemill run` and its sisters do, against a stand-in of the service."""

import asyncio
import io
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.service import KEY, Service, request_lines, result_lines
from support.waiting import until

from tidemill.client import command
from tidemill.client.batches import cancel, show, verify, watch
from tidemill.client.errors import Exit, Refused, UsageError
from tidemill.client.http import connection
from tidemill.client.http.client import Bounds, Client
from tidemill.client.runs import batch_runner
from tidemill.client.runs.job import RunOptions, run
from tidemill.client.runs.paths import Sink, endpoint_of, metadata_of
from tidemill.client.runs.plan import cut
from tidemill.client.runs.unique_ids import UniqueIds
from tidemill.client.target import Target
from tidemill.schemas.resources.batch import Batch
from tidemill.terminal import Console

ANOTHER = 54_321
"""A user."""


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """The stand-in."""
    async with Service() as service:
        yield service


@pytest.fixture(autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs to stdout are remembered in a folder of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def target(service: Service) -> Target:
    """Its address and key."""
    return Target(base_url=service.url, api_key=KEY)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An input of three lines."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(request_lines(3))
    return path


@pytest.fixture
def console() -> Console:
    """A console that remembers what was said."""
    return Console(record=True, width=200, markup=False, highlight=False, soft_wrap=True)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put(path: Path, content: bytes) -> Path:
    """Write a file."""
    path.write_bytes(content)
    return path


async def test_a_batch_is_fetched_and_checked(
    service: Service, target: Target, source: Path, console: Console, tmp_path: Path
) -> None:
    """Output, errors and receipt lie where they were asked for, and the exit code tells of the failed line."""
    output, errors = result_lines("r0", "r2"), result_lines("r1")
    counts = {"total": 3, "completed": 2, "failed": 1}
    service.finish(output, errors, request_counts=counts)
    sink = Sink(output=tmp_path / "out.jsonl", receipt=tmp_path / "receipt.json")
    assert await run(console, target, source, sink, RunOptions()) is Exit.SOME_FAILED
    files = contents(tmp_path)
    assert files.pop("receipt.json").startswith(b"{")
    assert files == {"in.jsonl": request_lines(3), "out.jsonl": output, "out.errors.jsonl": errors}
    assert service.files["file-in"] == request_lines(3)
    assert "3 lines in = 2 out + 1 errors, 0 missing, 0 duplicate" in console.export_text()


async def test_results_go_to_stdout(
    service: Service, target: Target, source: Path, console: Console, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Without -o nothing but results is on stdout."""
    console.file = open("/dev/null", "w")  # noqa: ASYNC230, PTH123, SIM115
    output = result_lines("r0", "r1", "r2")
    service.finish(output, request_counts={"total": 3, "completed": 3})
    assert await run(console, target, source, Sink(), RunOptions()) is Exit.OK
    assert capfdbinary.readouterr().out == output
    console.file.close()


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (result_lines("r0", "r1"), "1 missing"),
        (result_lines("r0", "r1", "r2", "r2"), "1 duplicate"),
        (result_lines("r0", "r1", "r2", "r9"), "1 foreign"),
        (result_lines("r0", "r1", "r2")[:-1], "incomplete"),
        (result_lines("r0", "r1") + b"{}\n", "custom_id"),
    ],
)
async def test_files_that_do_not_fit_are_told(
    service: Service,
    target: Target,
    source: Path,
    console: Console,
    tmp_path: Path,
    *,
    output: bytes,
    fault: str,
) -> None:
    """A service that loses, doubles or tears a line is found out."""
    service.finish(output, request_counts={"total": 3, "completed": 3})
    code = await run(console, target, source, Sink(output=tmp_path / "o"), RunOptions())
    assert code is Exit.INEXACT
    assert fault in console.export_text()


async def test_a_receipt_of_other_bytes_is_told(
    service: Service, target: Target, source: Path, console: Console, tmp_path: Path
) -> None:
    """With and without the input at hand, the hash of the file is that of the receipt, or it is said."""
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    service.files["file-out"] = result_lines("r2", "r1", "r0")
    sink = Sink(output=tmp_path / "o")
    assert await run(console, target, source, sink, RunOptions()) is Exit.INEXACT
    assert await watch(console, target, "batch_1", replace(sink, force=True)) is Exit.INEXACT
    assert "SHA-256" in console.export_text()


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ({"status": "completed", "request_counts": {"total": 1, "completed": 1}}, Exit.OK),
        ({"status": "completed", "request_counts": {"total": 1, "failed": 1}}, Exit.SOME_FAILED),
        ({"status": "expired"}, Exit.EXPIRED),
        ({"status": "cancelled"}, Exit.CANCELLED),
        ({"status": "failed", "errors": {"data": []}}, Exit.FAILED),
    ],
)
async def test_the_exit_code_tells_the_end(
    service: Service, target: Target, console: Console, state: dict[str, object], code: Exit
) -> None:
    """Each final state has its code; the states before are waited through."""
    service.states = [{"status": "validating"}, {"status": "in_progress", "request_counts": {"total": 9}}, state]
    assert await watch(console, target, "batch_1", Sink(), None) is code
    assert service.looks == 3


async def test_faulty_lines_are_listed(service: Service, target: Target, console: Console) -> None:
    """Each with its line, field and message, and nothing in it that a terminal would obey."""
    fault = {"code": "invalid_type", "message": "bad \x1b[31m[red]it[/red]", "param": "body.model", "line": 7}
    service.states = [{"status": "failed", "errors": {"object": "list", "data": [fault]}}]
    assert await watch(console, target, "batch_1", Sink(), None) is Exit.FAILED
    assert "line 7 (body.model): bad \\x1b[31m[red]it[/red] [invalid_type]" in console.export_text()


@pytest.mark.parametrize("there", ["out.jsonl", "out.errors.jsonl", "receipt.json"])
async def test_a_file_that_is_there_is_not_overwritten(
    service: Service, target: Target, source: Path, console: Console, tmp_path: Path, *, there: str
) -> None:
    """Nothing is sent either; with force it is, and what is no more of this run goes away."""
    put(tmp_path / there, b"mine")
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    sink = Sink(output=tmp_path / "out.jsonl", receipt=tmp_path / "receipt.json")
    with pytest.raises(UsageError, match=rf"{there} already exists; --force overwrites it"):
        await run(console, target, source, sink, RunOptions())
    with pytest.raises(UsageError, match="--force"):
        await watch(console, target, "batch_1", sink)
    assert contents(tmp_path) == {"in.jsonl": request_lines(3), there: b"mine"}
    assert "file-in" not in service.files
    assert await run(console, target, source, replace(sink, force=True), RunOptions()) is Exit.OK
    assert set(contents(tmp_path)) == {"in.jsonl", "out.jsonl", "receipt.json"}


async def left(console: Console, target: Target, source: Path, sink: Sink, service: Service) -> None:
    """Run a file, and leave as Ctrl-C does while its batch is at work."""
    service.states = [{"status": "in_progress", "request_counts": {"total": 3, "completed": 1}}]
    looks = service.looks
    task = asyncio.create_task(run(console, target, source, sink, RunOptions()))
    await until(lambda: service.looks > looks, "a look at the batch")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("output", ["out.jsonl", None])
async def test_the_same_command_goes_on(
    service: Service, target: Target, source: Path, console: Console, tmp_path: Path, *, output: str | None
) -> None:
    """No batch is made twice, under whatever name the content lies; once it is over nothing is remembered."""
    sink = Sink(output=tmp_path / output if output else None)
    await left(console, target, source, sink, service)
    moved = put(tmp_path / "moved.jsonl", request_lines(3))
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    assert await run(console, target, moved, sink, RunOptions()) is Exit.OK
    assert len(service.created) == 1
    said = console.export_text()
    assert "The same command resumes it." in said
    assert "Resuming moved.jsonl; --again starts over." in said
    assert set(contents(tmp_path)) == {"in.jsonl", "moved.jsonl", *([output] if output else [])}


async def test_a_project_without_room_is_said(
    service: Service, target: Target, source: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may wait for others of its project for hours, and says so."""
    monkeypatch.setattr(batch_runner, "QUOTA_SECONDS", 0.01)
    service.full = 2
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    assert await run(console, target, source, Sink(), RunOptions()) is Exit.OK
    assert "in.jsonl: waits for quota: The project has 9 batches." in console.export_text()


async def test_a_run_that_waits_for_quota_has_no_batch(
    service: Service, target: Target, source: Path, console: Console, tmp_path: Path
) -> None:
    """Ctrl-C says so."""
    service.full = 1
    task = asyncio.create_task(run(console, target, source, Sink(output=tmp_path / "o"), RunOptions()))
    await until(lambda: not service.full, "a refused request")
    await until(lambda: "waits for quota" in console.export_text(clear=False), "the reason")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "in.jsonl was interrupted before its batch was created." in console.export_text()


async def test_again_runs_anew(
    service: Service, target: Target, source: Path, console: Console, tmp_path: Path
) -> None:
    """And what is another run is not gone on with."""
    sink = Sink(output=tmp_path / "out.jsonl")
    await left(console, target, source, sink, service)
    with pytest.raises(UsageError, match="--again starts over"):
        await run(console, target, source, sink, RunOptions(window="7d"))
    put(source, request_lines(2))
    with pytest.raises(UsageError, match="--again starts over"):
        await run(console, target, source, sink, RunOptions())
    service.finish(result_lines("r0", "r1"), request_counts={"total": 2, "completed": 2})
    assert await run(console, target, source, sink, RunOptions(again=True)) is Exit.OK
    assert (len(service.created), len(service.keys)) == (2, 2)


async def test_again_without_force_forgets_nothing(
    service: Service, target: Target, source: Path, console: Console, tmp_path: Path
) -> None:
    """What is begun stays known, where a file in its way has to be moved first."""
    sink = Sink(output=tmp_path / "out.jsonl")
    await left(console, target, source, sink, service)
    there = put(tmp_path / "out.jsonl", b"mine")
    with pytest.raises(UsageError, match="--force overwrites it"):
        await run(console, target, source, sink, RunOptions(again=True))
    there.unlink()
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    assert await run(console, target, source, sink, RunOptions()) is Exit.OK
    assert len(service.created) == 1


async def test_a_file_that_came_during_the_run_is_not_overwritten(
    service: Service, target: Target, source: Path, console: Console, tmp_path: Path
) -> None:
    """The results are kept, and the same command puts them there once there is room, or with force."""
    sink = Sink(output=tmp_path / "out.jsonl")
    service.states = [{"status": "in_progress", "request_counts": {"total": 3, "completed": 1}}]
    task = asyncio.create_task(run(console, target, source, sink, RunOptions()))
    await until(lambda: service.looks > 0, "a look at the batch")
    put(tmp_path / "out.jsonl", b"mine")
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    with pytest.raises(UsageError, match="--force overwrites it"):
        await task
    assert (tmp_path / "out.jsonl").read_bytes() == b"mine"
    assert await run(console, target, source, replace(sink, force=True), RunOptions()) is Exit.OK
    assert (len(service.created), (tmp_path / "out.jsonl").read_bytes()) == (1, result_lines("r0", "r1", "r2"))


async def test_a_journal_of_another_user_is_not_used(
    target: Target, source: Path, console: Console, tmp_path: Path
) -> None:
    """In a folder that others may write to, its files could be links to this user's."""
    folder, victim = tmp_path / "out.jsonl.tidemill", put(tmp_path / "victim", b"precious\n")
    folder.mkdir()
    (folder / "journal.jsonl").symlink_to(victim)
    try:
        os.chown(folder, ANOTHER, ANOTHER)
    except PermissionError:
        pytest.skip("only root can give a folder to another user")
    with pytest.raises(UsageError, match="belongs to another user"):
        await run(console, target, source, Sink(output=tmp_path / "out.jsonl"), RunOptions())
    assert victim.read_bytes() == b"precious\n"


async def test_a_run_that_was_refused_is_not_remembered(
    target: Target, source: Path, console: Console, tmp_path: Path
) -> None:
    """Its command can be mended and given again."""
    sink, wrong = Sink(output=tmp_path / "out.jsonl"), Target(base_url=target.base_url, api_key="wrong")
    with pytest.raises(Refused, match="Incorrect API key"):
        await run(console, wrong, source, sink, RunOptions(window="1y"))
    assert set(contents(tmp_path)) == {"in.jsonl"}


@pytest.mark.parametrize("output", ["out.jsonl", None])
async def test_a_batch_whose_answer_was_lost_is_found_again(  # noqa: PLR0917
    service: Service,
    target: Target,
    source: Path,
    console: Console,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    output: str | None,
) -> None:
    """The next run asks under the same idempotency key, although the service rejected every later attempt."""
    monkeypatch.setattr(connection, "PAUSE_SECONDS_MAX", 0.01)
    sink = Sink(output=tmp_path / output if output else None)
    service.lost, service.is_closing = 1, True
    with pytest.raises(Refused):
        await run(console, target, source, sink, RunOptions())
    assert "in.jsonl may have a batch at the service. The same command looks for it." in console.export_text()
    with pytest.raises(Refused):
        await run(console, target, source, sink, RunOptions())
    service.is_deleted = False
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    assert await run(console, target, source, sink, RunOptions()) is Exit.OK
    assert (len(service.created), len(service.keys)) == (2, 1)


async def test_names_and_metadata(service: Service, target: Target, source: Path, console: Console) -> None:
    """Are the batch's."""
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    order = RunOptions(metadata=metadata_of(["team=a", "x=1=2"]) | {"name": "nightly"})
    assert await run(console, target, source, Sink(), order) is Exit.OK
    assert service.created[0]["metadata"] == {"team": "a", "x": "1=2", "name": "nightly"}
    for wrong in (["team"], ["=a"], ["a=1", "a=2"]):
        with pytest.raises(UsageError, match="KEY=VALUE"):
            metadata_of(wrong)


@pytest.mark.parametrize(
    ("state", "words", "colour"),
    [
        ({"status": "completed", "request_counts": {"total": 200, "completed": 200}}, "200 of 200 succeeded", 32),
        (
            {"status": "completed", "request_counts": {"total": 200, "completed": 1, "failed": 199}},
            "1 of 200 succeeded, 199 failed",
            33,
        ),
        (
            {"status": "completed", "request_counts": {"total": 200, "failed": 200}},
            "0 of 200 succeeded, 200 failed",
            31,
        ),
        (
            {
                "status": "expired",
                "request_counts": {"total": 9, "completed": 4, "failed": 1},
                "expired_at": 86_401,
            },
            "expired after 24:00:00 h: 4 of 9 succeeded, 1 failed, 4 did not run",
            33,
        ),
        ({"status": "failed", "failed_at": 3}, "failed after 2.0 s: the input was rejected, no line was run", 31),
        (
            {"status": "failed", "failed_at": 1},
            "failed within a second: the input was rejected, no line was run",
            31,
        ),
    ],
)
async def test_the_end_in_words_and_colour(
    service: Service, target: Target, *, state: dict[str, object], words: str, colour: int
) -> None:
    """Green only where all succeeded, red where nothing did; the time is the batch's, not that of the look."""
    service.states = [state]
    file = io.StringIO()
    terminal = Console(
        file=file, width=80, force_terminal=True, color_system="standard", highlight=False, soft_wrap=True
    )
    await watch(terminal, target, "batch_1", Sink())
    (headline,) = [line for line in file.getvalue().splitlines() if words in line]
    assert f"\x1b[{colour}m" in headline


async def test_why_lines_failed_and_what_can_be_done(service: Service, target: Target, console: Console) -> None:
    """By code, the most frequent first, with the server's words; and how many lines a rerun has."""
    counts = {"total": 300, "completed": 30, "failed": 270}
    groups = [{"code": f"c{n}", "status_code": None, "count": n, "samples": []} for n in range(1, 24)]
    sample = {"index": 0, "custom_id": "a", "message": "slow \x1b[31mdown"}
    groups.append({"code": "rate_limit", "status_code": 429, "count": 199, "samples": [sample]})
    service.states = [{"status": "expired", "request_counts": counts, "expired_at": 61}]
    service.report = {"total": 270, "unfinished": 269, "data": groups}
    await watch(console, target, "batch_1", Sink())
    said = console.export_text().splitlines()
    assert said[2] == "  199 x 429 rate_limit: slow \\x1b[31mdown"
    assert said[-2:] == [
        "  and 4 more: --all shows them",
        "  To rerun the 269 unfinished lines: `tidemill rerun batch_1`",
    ]
    await watch(console, target, "batch_1", Sink(), show_all=True)
    assert "1 x c1" in console.export_text()


async def test_a_stall_is_said_once(service: Service, target: Target, console: Console) -> None:
    """While it lasts; that lines have not had their turn is no stall, and said once for all."""
    usual = {"reason": "queued", "lines": 9, "message": "others go first", "since": 1}
    down = {
        "reason": "server_refuses",
        "lines": 5,
        "server": "http://h/v1",
        "message": "h answers 401",
        "since": 1,
    }
    stalled = {"status": "in_progress", "request_counts": {"total": 9}, "tidemill": {"waiting": [usual, down]}}
    fine = {**stalled, "tidemill": {"waiting": [usual]}}
    none = {**stalled, "tidemill": {}}
    service.states = [stalled, stalled, fine, none, stalled, {"status": "completed"}]
    await watch(console, target, "batch_1", Sink())
    said = console.export_text()
    assert said.count("5 lines wait: h answers 401") == 2
    assert said.count("9 lines wait: others go first") == 1


async def test_equal_faults_are_one_row(service: Service, target: Target, console: Console) -> None:
    """Of a thousand; unless all are asked for."""
    faults = [{"code": "c", "message": "no body", "param": "body", "line": n} for n in range(1, 1_000)]
    service.states = [
        {"status": "failed", "errors": {"object": "list", "data": [*faults, faults[0] | {"code": "d"}]}}
    ]
    await watch(console, target, "batch_1", Sink())
    assert console.export_text().splitlines()[2:] == [
        "  lines 1, 2, 3 and 996 more (body): no body [c]",
        "  line 1 (body): no body [d]",
    ]
    await watch(console, target, "batch_1", Sink(), show_all=True)
    assert "  line 998 (body): no body [c]" in console.export_text()


async def test_a_part_of_an_id_is_enough(service: Service, target: Target, console: Console) -> None:
    """Its beginning or its end, where one of the newest batches has it."""
    service.ids = [f"batch_abcd{n:02x}{'0' * 22}{n:04x}" for n in range(1, 130)]
    async with Client(target.base_url, target.api_key) as client:
        assert await client.find("batch_abcd7f") == await client.find("0000007f") == service.ids[126]
        assert await client.find(service.ids[3]) == service.ids[3]
        for text, count in (("abcd", "129 batches match"), ("ffff", "no match among the newest")):
            with pytest.raises(UsageError, match=count):
                await client.find(text)
    await cancel(console, target, "0007f")
    assert service.cancels == 1


async def test_a_list_fits_a_terminal(
    service: Service, target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the names, in 80 columns."""
    long = {"name": "the-nightly-run-of-2026-11-23.jsonl"}
    counts = {"total": 50_000, "completed": 50_000}
    service.rows = {
        "status": "in_progress",
        "model": "org/a-model-of-32b",
        "request_counts": counts,
        "tidemill": long,
    }
    service.ids = [f"batch_{'0' * 24}1a2b3c4d"]
    await show(target, limit=1, as_json=False)
    head, row = capsys.readouterr().out.splitlines()
    assert max(len(head.rstrip()), len(row.rstrip())) <= 80
    assert row.split()[:5] == [
        "1a2b3c4d",
        "…of-2026-11-23.jsonl",
        "in_progress",
        "50,000/50,000",
        "…/a-model-of-32b",
    ]
    for reason, shown in {
        "no_processor": "no processor",
        "server_refuses": "refuses",
        "in_flight": "in flight",
    }.items():
        waits = [{"reason": reason, "lines": 9, "message": "It waits.", "since": 1}]
        service.rows["tidemill"] = long | {"waiting": waits}
        await show(target, limit=1, as_json=False)
        row = capsys.readouterr().out.splitlines()[1]
        assert shown in row
        assert len(row.rstrip()) <= 80


@pytest.mark.parametrize("content", [b"", b"\n \n", b"hello\n", b"[]\n", b'{"url":"/v1/nothing"}\n'])
async def test_a_file_that_is_no_input_is_not_uploaded(
    service: Service, target: Target, console: Console, tmp_path: Path, content: bytes
) -> None:
    """It is looked at first."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    with pytest.raises(UsageError):
        await run(console, target, source, Sink(), RunOptions())
    assert service.files == {}


@pytest.mark.parametrize(
    ("encoding", "why"),
    [
        ("utf-16", "encoded as UTF-16; save it as UTF-8 (`iconv -f UTF-16 -t UTF-8 FILE`)"),
        ("utf-16-be", "encoded as UTF-16"),
        ("utf-32", "encoded as UTF-32"),
        ("cp1252", "0xe4 is not UTF-8; if it should be 'ä', it is Windows-1252: save it"),
    ],
)
def test_the_encoding_of_an_input_is_named(tmp_path: Path, encoding: str, why: str) -> None:
    """In the first line, and in any line of a file that exceeds a batch, before anything is uploaded."""
    line = '{"custom_id": "%s", "url": "/v1/embeddings", "x": "%s"}\n'
    source = put(tmp_path / "in.jsonl", (line % ("a", "ä")).encode(encoding))
    with pytest.raises(UsageError, match=re.escape(why)):
        endpoint_of(source)
    put(source, (line % ("a", "a")).encode() + (line % ("b", "ä")).encode(encoding))
    with pytest.raises(UsageError, match=r"line 2: .*(UTF-16|UTF-32|Windows-1252)"):
        cut(source, Bounds(lines_max=1), UniqueIds(tmp_path / "ids"), endpoint="/v1/embeddings")


def test_a_file_is_not_written_over_its_input(source: Path, tmp_path: Path) -> None:
    """Nor are two results written to one place, nor one where no file can be."""
    for sink, why in (
        (Sink(output=source), "same file"),
        (Sink(output=tmp_path / "a", errors=tmp_path / "a"), "same file"),
        (Sink(output=tmp_path), "is a folder"),
        (Sink(output=tmp_path / "none" / "a"), f"the folder {tmp_path / 'none'} does not exist"),
        (Sink(output=Path("/dev/null")), "not a regular file"),
    ):
        with pytest.raises(UsageError, match=why):
            sink.checked(source)


async def test_cancel_and_list(
    service: Service, target: Target, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cancelling says how to go on; the list has one batch a line."""
    assert await cancel(console, target, "batch_1") is Exit.OK
    assert service.cancels == 1
    assert await show(target, limit=3, as_json=True) is Exit.OK
    assert capsys.readouterr().out.count("\n") == 4
    assert await show(target, limit=3, as_json=False) is Exit.OK
    assert "batch_2" in capsys.readouterr().out


def test_what_went_wrong_is_an_exit_code(console: Console) -> None:
    """No service is 7, in words that are not a library's; a file that is not there is 2."""
    nowhere = Target(base_url="http://127.0.0.1:1/v1", api_key="x")
    for url, why in (
        (nowhere.base_url, "no service answers at http://127.0.0.1:1/v1: Connection refused"),
        ("here", "here is not a valid address"),
        ("http://nothing.invalid/v1", "the host name in http://nothing.invalid/v1 does not resolve"),
    ):
        target = Target(base_url=url, api_key="x")
        assert command.run(console, lambda target=target: cancel(console, target, "batch_1")) is Exit.UNREACHABLE
        assert console.export_text() == f"tidemill: {why}\n"
    source = Path("/nonexistent")
    assert command.run(console, lambda: run(console, nowhere, source, Sink(), RunOptions())) is Exit.USAGE


def test_verify_needs_no_service(source: Path, console: Console, tmp_path: Path) -> None:
    """Files are checked against each other."""
    output = tmp_path / "out.jsonl"
    output.write_bytes(result_lines("r0", "r2"))
    errors = tmp_path / "errors.jsonl"
    errors.write_bytes(result_lines("r1"))
    assert verify(console, source, output, errors) is Exit.OK
    assert verify(console, source, output, None) is Exit.INEXACT
    assert verify(console, source, tmp_path / "none", None) is Exit.USAGE
    assert "for example r1" in console.export_text()


def test_a_service_that_speaks_otherwise(console: Console) -> None:
    """An answer that is not of the API ends a command with a sentence, which holds nothing of the answer."""

    async def asked() -> Exit:
        Batch.model_validate({"id": "batch_\x1b[2J"})
        return Exit.OK

    assert command.run(console, asked) is Exit.UNREACHABLE
    said = console.export_text()
    assert "does not speak the Batch API: id: String should match" in said
    assert "2J" not in said


async def test_leaving_does_not_cancel(service: Service, source: Path) -> None:
    """Ctrl-C ends the command, says how to go on, and the batch is none the wiser."""
    service.states = [{"status": "in_progress", "request_counts": {"total": 3, "completed": 1}}]
    arguments = ["-m", "tidemill", "run", str(source), "--base-url", service.url, "--api-key", KEY]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stderr=asyncio.subprocess.PIPE,
        # A suite that runs in the background of a shell has SIGINT ignored, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    await until(lambda: service.looks > 0, "a look at the batch")
    process.send_signal(signal.SIGINT)
    _, said = await process.communicate()
    assert process.returncode == Exit.DETACHED
    assert b"in.jsonl keeps running. The same command resumes it." in said
    assert b"Traceback" not in said
    assert service.cancels == 0
