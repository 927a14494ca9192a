"""A run that was interrupted, refused or made to wait resumes with the same command."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import orjson
import pytest
from aiohttp import web
from support.folders import contents, put
from support.service import KEY, Service, request_lines, result_lines
from support.waiting import until

from tidemill.client.batches import watch
from tidemill.client.errors import Exit, NoSpace, OtherService, Refused, UsageError, next_step
from tidemill.client.http import connection
from tidemill.client.http.client import Client
from tidemill.client.runs import batch_runner
from tidemill.client.runs.job import RunOptions, run
from tidemill.client.runs.paths import Sink
from tidemill.quotas import Quota
from tidemill.terminal import Console

ANOTHER = 54_321
"""Another user."""


async def interrupted(console: Console, client: Client, source: Path, sink: Sink, service: Service) -> None:
    """Start a run, and cancel it as Ctrl-C does once its batch is in progress."""
    service.states = [{"status": "in_progress", "request_counts": {"total": 3, "completed": 1}}]
    looks = service.looks
    task = asyncio.create_task(run(console, client, source, sink, RunOptions()))
    await until(lambda: service.looks > looks, "a look at the batch")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("output", ["out.jsonl", None])
async def test_the_same_command_resumes(
    service: Service, client: Client, source: Path, console: Console, tmp_path: Path, *, output: str | None
) -> None:
    """It creates no second batch, even if the input was renamed, and leaves no journal at the end."""
    sink = Sink(output=tmp_path / output if output else None)
    await interrupted(console, client, source, sink, service)
    moved = put(tmp_path / "moved.jsonl", request_lines(3))
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    assert await run(console, client, moved, sink, RunOptions()) is Exit.OK
    assert len(service.created) == 1
    said = console.export_text()
    assert "The same command resumes it." in said
    assert "Resuming moved.jsonl; --again starts over." in said
    assert set(contents(tmp_path)) == {"in.jsonl", "moved.jsonl", *([output] if output else [])}


async def test_an_upload_that_breaks_off_is_repeated(
    service: Service, client: Client, source: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on once the service is back."""
    monkeypatch.setattr(connection, "PAUSE_SECONDS_MAX", 0.01)
    service.cut_uploads = 6
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    assert await run(console, client, source, Sink(), RunOptions()) is Exit.OK
    assert (service.cut_uploads, len(service.created)) == (0, 1)


@pytest.mark.parametrize(
    ("usual", "wanted", "window"), [(None, None, "24h"), ("1h", None, "1h"), ("1h", "7d", "7d")]
)
async def test_a_run_has_the_usual_window_of_the_service(
    service: Service,
    client: Client,
    source: Path,
    console: Console,
    *,
    usual: str | None,
    wanted: str | None,
    window: str,
) -> None:
    """Unless it names one; a service that names none has OpenAI's."""
    service.limits = None if usual is None else {"usual_window": usual}
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    assert await run(console, client, source, Sink(), RunOptions(window=wanted)) is Exit.OK
    assert [body["completion_window"] for body in service.created] == [window]


@pytest.mark.parametrize("dedupe", [None, "batch"])
async def test_a_run_may_ask_equal_lines_once(
    service: Service, client: Client, source: Path, console: Console, *, tmp_path: Path, dedupe: str | None
) -> None:
    """The service gets the wish, if there is one; summary and receipt count the copies."""
    receipt = {"lines": 3, "output": None, "copies": 2}
    service.finish(
        result_lines("r0", "r1", "r2"),
        request_counts={"total": 3, "completed": 3},
        **({"tidemill": {"receipt": receipt}} if dedupe else {}),
    )
    sink = Sink(output=tmp_path / "out.jsonl", receipt=tmp_path / "receipt.json")
    await run(console, client, source, sink, RunOptions(dedupe=dedupe))
    assert [body.get("dedupe") for body in service.created] == [dedupe]
    assert sink.receipt is not None
    assert orjson.loads(sink.receipt.read_bytes())["copies"] == (2 if dedupe else 0)


async def test_a_run_may_name_a_callback(service: Service, client: Client, source: Path, console: Console) -> None:
    """The service calls it at the end of the batch."""
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    await run(console, client, source, Sink(), RunOptions(callback="https://hooks.example.com/a"))
    assert [body.get("callback_url") for body in service.created] == ["https://hooks.example.com/a"]


async def test_a_run_waits_for_quota_and_says_so(
    service: Service, client: Client, source: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other batches of its project may take hours."""
    monkeypatch.setattr(batch_runner, "QUOTA_SECONDS", 0.01)
    service.full = 2
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    assert await run(console, client, source, Sink(), RunOptions()) is Exit.OK
    assert "in.jsonl: waits for quota: The project has 9 batches." in console.export_text()


@pytest.mark.parametrize("limit", ["bytes_stored_max", "files_max"])
async def test_a_quota_that_nothing_makes_room_in_ends_a_run(
    service: Service, client: Client, source: Path, console: Console, limit: str
) -> None:
    """Only the user can delete something; the file is sent once."""
    service.refusal = 429, f"The project has no room. (limit: {limit})"
    with pytest.raises(Refused, match="no room"):
        await run(console, client, source, Sink(), RunOptions())
    assert service.uploads == 1
    assert {"batches_in_progress_max", "lines_enqueued_max"} == set(batch_runner.PASSING_LIMITS)
    assert set(batch_runner.PASSING_LIMITS) < set(Quota)


async def test_a_full_disk_at_the_create_leaves_no_batch(source: Path, console: Console) -> None:
    """So the run does not say that one keeps running."""

    class Full(Service):
        async def _create(self, request: web.Request) -> web.Response:
            del request
            error = {"message": "The server's disk is full.", "type": "server_error", "code": None, "param": None}
            return web.json_response({"error": error}, status=507)

    async with Full() as service, Client(service.url, KEY) as client:
        with pytest.raises(NoSpace):
            await run(console, client, source, Sink(), RunOptions())
    assert "keeps running" not in console.export_text()


async def test_a_full_disk_ends_a_run_that_the_same_command_resumes(
    service: Service, client: Client, source: Path, console: Console
) -> None:
    """The file is sent once, and the next step is to delete something."""
    await client.batch("batch_1")
    service.refusal = 507, "The server's disk is full."
    with pytest.raises(NoSpace, match="507 The server's disk is full") as caught:
        await run(console, client, source, Sink(), RunOptions())
    assert service.uploads == 1
    step = next_step(caught.value)
    assert step is not None
    assert "DELETE /v1/files/ID" in step
    assert "tidemill up" not in step
    service.refusal = None
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    assert await run(console, client, source, Sink(), RunOptions()) is Exit.OK
    assert "The same command resumes it." in console.export_text()


async def test_ctrl_c_while_waiting_for_quota(
    service: Service, client: Client, source: Path, console: Console, tmp_path: Path
) -> None:
    """The message says that there is no batch yet."""
    service.full = 1
    task = asyncio.create_task(run(console, client, source, Sink(output=tmp_path / "o"), RunOptions()))
    await until(lambda: not service.full, "a refused request")
    await until(lambda: "waits for quota" in console.export_text(clear=False), "the reason")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "in.jsonl was interrupted before its batch was created." in console.export_text()


async def test_again_starts_over(
    service: Service, client: Client, source: Path, console: Console, tmp_path: Path
) -> None:
    """Another input or another window needs it: a run resumes only with the same job."""
    sink = Sink(output=tmp_path / "out.jsonl")
    await interrupted(console, client, source, sink, service)
    with pytest.raises(UsageError, match="--again starts over"):
        await run(console, client, source, sink, RunOptions(window="7d"))
    put(source, request_lines(2))
    with pytest.raises(UsageError, match="--again starts over"):
        await run(console, client, source, sink, RunOptions())
    service.finish(result_lines("r0", "r1"), request_counts={"total": 2, "completed": 2})
    assert await run(console, client, source, sink, RunOptions(again=True)) is Exit.OK
    assert (len(service.created), len(service.keys)) == (2, 2)


async def test_again_keeps_the_journal_if_a_file_is_in_the_way(
    service: Service, client: Client, source: Path, console: Console, tmp_path: Path
) -> None:
    """Once the file is moved, the same command resumes the run."""
    sink = Sink(output=tmp_path / "out.jsonl")
    await interrupted(console, client, source, sink, service)
    there = put(tmp_path / "out.jsonl", b"mine")
    with pytest.raises(UsageError, match="--force overwrites it"):
        await run(console, client, source, sink, RunOptions(again=True))
    there.unlink()
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    assert await run(console, client, source, sink, RunOptions()) is Exit.OK
    assert len(service.created) == 1


async def test_a_journal_of_another_user_is_not_used(
    client: Client, source: Path, console: Console, tmp_path: Path
) -> None:
    """Its files could be links to files of this user."""
    folder, victim = tmp_path / "out.jsonl.tidemill", put(tmp_path / "victim", b"precious\n")
    folder.mkdir()
    (folder / "journal.jsonl").symlink_to(victim)
    try:
        os.chown(folder, ANOTHER, ANOTHER)
    except PermissionError:
        pytest.skip("only root can give a folder to another user")
    with pytest.raises(UsageError, match="belongs to another user"):
        await run(console, client, source, Sink(output=tmp_path / "out.jsonl"), RunOptions())
    assert victim.read_bytes() == b"precious\n"


async def test_a_refused_run_leaves_no_journal(
    client: Client, source: Path, console: Console, tmp_path: Path
) -> None:
    """The user corrects the command and starts it again."""
    sink = Sink(output=tmp_path / "out.jsonl")
    async with Client(client.base_url, "wrong") as wrong:
        with pytest.raises(Refused, match="Incorrect API key"):
            await run(console, wrong, source, sink, RunOptions(window="1y"))
    assert set(contents(tmp_path)) == {"in.jsonl"}


@pytest.mark.parametrize("output", ["out.jsonl", None])
async def test_a_batch_whose_answer_was_lost_is_found_again(  # noqa: PLR0917
    service: Service,
    client: Client,
    source: Path,
    console: Console,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    output: str | None,
) -> None:
    """The next run repeats the request under the same idempotency key, whatever the service answered meanwhile."""
    monkeypatch.setattr(connection, "PAUSE_SECONDS_MAX", 0.01)
    sink = Sink(output=tmp_path / output if output else None)
    service.lost, service.is_closing = 1, True
    with pytest.raises(Refused):
        await run(console, client, source, sink, RunOptions())
    assert "in.jsonl may have a batch at the service. The same command looks for it." in console.export_text()
    with pytest.raises(Refused):
        await run(console, client, source, sink, RunOptions())
    service.is_deleted = False
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    assert await run(console, client, source, sink, RunOptions()) is Exit.OK
    assert (len(service.created), len(service.keys)) == (2, 1)


@pytest.mark.parametrize("status", [404, 200])
async def test_a_gateway_that_answers_for_the_service_ends_no_run(  # noqa: PLR0917
    service: Service, client: Client, source: Path, console: Console, tmp_path: Path, status: int
) -> None:
    """To start over would pay for every line twice; the same command resumes."""
    sink = Sink(output=tmp_path / "out.jsonl")
    await interrupted(console, client, source, sink, service)
    service.down, service.down_status, service.down_body = 1, status, "<h1>No backend</h1>"
    async with Client(service.url, KEY) as started_anew:
        with pytest.raises(OtherService, match="does not speak the Batch API"):
            await run(console, started_anew, source, sink, RunOptions())
    assert "in.jsonl may have a batch at the service. The same command looks for it." in console.export_text()
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    assert await run(console, client, source, sink, RunOptions()) is Exit.OK
    assert len(service.created) == 1


@pytest.mark.parametrize("status", [404, 200])
@pytest.mark.parametrize("command", ["run", "watch"])
async def test_a_gateway_that_answers_in_between_does_not_end_the_wait(  # noqa: PLR0917
    service: Service,
    client: Client,
    source: Path,
    console: Console,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    status: int,
) -> None:
    """As an error of the service does not."""
    monkeypatch.setattr(connection, "PAUSE_SECONDS_MAX", 0.01)
    service.states = [{"status": "in_progress", "request_counts": {"total": 3, "completed": 1}}]
    sink = Sink(output=tmp_path / "out.jsonl")
    if command == "run":
        work = run(console, client, source, sink, RunOptions())
    else:
        work = watch(console, client, "batch_1", sink)
    task = asyncio.create_task(work)
    await until(lambda: service.looks > 0, "a look at the batch")
    service.down, service.down_status, service.down_body = 1, status, "<h1>No backend</h1>"
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    assert await task is Exit.OK
    assert not service.down


async def test_ctrl_c_does_not_cancel_the_batch(service: Service, source: Path) -> None:
    """It ends the command, which says how to resume."""
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
    assert b"tidemill cancel batch_1` ends it." in said
    assert b"Traceback" not in said
    assert service.cancels == 0
