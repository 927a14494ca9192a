"""What `tidemill run` and its sisters do, against a stand-in of the service."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.service import KEY, Service, request_lines, result_lines
from support.waiting import until

from tidemill.client.ending import Exit
from tidemill.client.place import InputFault, Sink
from tidemill.client.run import cancel, ended, run, show, verify, watch
from tidemill.client.target import Target
from tidemill.schemas.batch import Batch
from tidemill.terminal import Console


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """The stand-in."""
    async with Service() as service:
        yield service


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
def talk() -> Console:
    """A console that remembers what was said."""
    return Console(record=True, width=200, markup=False, highlight=False, soft_wrap=True)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_a_batch_is_fetched_and_checked(
    service: Service, target: Target, source: Path, talk: Console, tmp_path: Path
) -> None:
    """Output, errors and receipt lie where they were asked for, and the exit code tells of the failed line."""
    output, errors = result_lines("r0", "r2"), result_lines("r1")
    counts = {"total": 3, "completed": 2, "failed": 1}
    service.finish(output, errors, request_counts=counts)
    sink = Sink(output=tmp_path / "out.jsonl", receipt=tmp_path / "receipt.json")
    assert await run(talk, target, source, sink, endpoint=None, window="24h") is Exit.SOME_FAILED
    files = contents(tmp_path)
    assert files.pop("receipt.json").startswith(b"{")
    assert files == {"in.jsonl": request_lines(3), "out.jsonl": output, "out.errors.jsonl": errors}
    assert service.files["file-in"] == request_lines(3)
    assert "3 lines in = 2 out + 1 errors, 0 missing, 0 double" in talk.export_text()


async def test_results_go_to_stdout(
    service: Service, target: Target, source: Path, talk: Console, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Without -o nothing but results is on stdout."""
    talk.file = open("/dev/null", "w")  # noqa: ASYNC230, PTH123, SIM115
    output = result_lines("r0", "r1", "r2")
    service.finish(output, request_counts={"total": 3, "completed": 3})
    assert await run(talk, target, source, Sink(), endpoint=None, window="24h") is Exit.OK
    assert capfdbinary.readouterr().out == output
    talk.file.close()


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (result_lines("r0", "r1"), "1 missing"),
        (result_lines("r0", "r1", "r2", "r2"), "1 double"),
        (result_lines("r0", "r1", "r2", "r9"), "1 foreign"),
        (result_lines("r0", "r1", "r2")[:-1], "torn"),
        (result_lines("r0", "r1") + b"{}\n", "custom_id"),
    ],
)
async def test_files_that_do_not_fit_are_told(
    service: Service,
    target: Target,
    source: Path,
    talk: Console,
    tmp_path: Path,
    *,
    output: bytes,
    fault: str,
) -> None:
    """A service that loses, doubles or tears a line is found out."""
    service.finish(output, request_counts={"total": 3, "completed": 3})
    code = await run(talk, target, source, Sink(output=tmp_path / "o"), endpoint=None, window="24h")
    assert code is Exit.INEXACT
    assert fault in talk.export_text()


async def test_a_receipt_of_other_bytes_is_told(
    service: Service, target: Target, source: Path, talk: Console, tmp_path: Path
) -> None:
    """With and without the input at hand, the hash of the file is that of the receipt, or it is said."""
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    service.files["file-out"] = result_lines("r2", "r1", "r0")
    sink = Sink(output=tmp_path / "o")
    assert await run(talk, target, source, sink, endpoint=None, window="24h") is Exit.INEXACT
    assert await watch(talk, target, "batch_1", sink, None) is Exit.INEXACT
    assert "SHA-256" in talk.export_text()


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
    service: Service, target: Target, talk: Console, state: dict[str, object], code: Exit
) -> None:
    """Each final state has its code; the states before are waited through."""
    service.states = [{"status": "validating"}, {"status": "in_progress", "request_counts": {"total": 9}}, state]
    assert await watch(talk, target, "batch_1", Sink(), None) is code
    assert service.looks == 3


async def test_faulty_lines_are_listed(service: Service, target: Target, talk: Console) -> None:
    """Each with its line, field and message, and nothing in it that a terminal would obey."""
    fault = {"code": "invalid_type", "message": "bad \x1b[31m[red]it[/red]", "param": "body.model", "line": 7}
    service.states = [{"status": "failed", "errors": {"object": "list", "data": [fault]}}]
    assert await watch(talk, target, "batch_1", Sink(), None) is Exit.FAILED
    assert "line 7 (body.model): bad \\x1b[31m[red]it[/red] [invalid_type]" in talk.export_text()


async def test_an_old_error_file_is_not_taken_for_this_ones(
    service: Service, target: Target, source: Path, talk: Console, tmp_path: Path
) -> None:
    """What lay at the place of the errors goes away where there are none."""
    (tmp_path / "out.errors.jsonl").write_text("old")
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    sink = Sink(output=tmp_path / "out.jsonl")
    assert await run(talk, target, source, sink, endpoint=None, window="24h") is Exit.OK
    assert set(contents(tmp_path)) == {"in.jsonl", "out.jsonl"}


@pytest.mark.parametrize("content", [b"", b"\n \n", b"hello\n", b"[]\n", b'{"url":"/v1/nothing"}\n'])
async def test_a_file_that_is_no_input_is_not_uploaded(
    service: Service, target: Target, talk: Console, tmp_path: Path, content: bytes
) -> None:
    """It is looked at first."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    with pytest.raises(InputFault):
        await run(talk, target, source, Sink(), endpoint=None, window="24h")
    assert service.files == {}


def test_a_file_is_not_written_over_its_input(source: Path, tmp_path: Path) -> None:
    """Nor are two results written to one place, nor one where no file can be."""
    for sink in (
        Sink(output=source),
        Sink(output=tmp_path / "a", errors=tmp_path / "a"),
        Sink(output=tmp_path),
        Sink(output=tmp_path / "none" / "a"),
    ):
        with pytest.raises(InputFault):
            sink.checked(source)


async def test_cancel_and_list(
    service: Service, target: Target, talk: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cancelling says how to go on; the list has one batch a line."""
    assert await cancel(talk, target, "batch_1") is Exit.OK
    assert service.cancels == 1
    assert await show(target, limit=3, as_json=True) is Exit.OK
    assert capsys.readouterr().out.count("\n") == 4
    assert await show(target, limit=3, as_json=False) is Exit.OK
    assert "batch_2" in capsys.readouterr().out


def test_what_went_wrong_is_an_exit_code(talk: Console) -> None:
    """No service is 7; a file that is not there is 2."""
    nowhere = Target(base_url="http://127.0.0.1:1/v1", api_key="x")
    assert ended(talk, cancel(talk, nowhere, "batch_1")) is Exit.UNREACHABLE
    job = run(talk, nowhere, Path("/nonexistent"), Sink(), endpoint=None, window="24h")
    assert ended(talk, job) is Exit.USAGE


def test_verify_needs_no_service(source: Path, talk: Console, tmp_path: Path) -> None:
    """Files are checked against each other."""
    output = tmp_path / "out.jsonl"
    output.write_bytes(result_lines("r0", "r2"))
    errors = tmp_path / "errors.jsonl"
    errors.write_bytes(result_lines("r1"))
    assert verify(talk, source, output, errors) is Exit.OK
    assert verify(talk, source, output, None) is Exit.INEXACT
    assert verify(talk, source, tmp_path / "none", None) is Exit.USAGE
    assert "for example r1" in talk.export_text()


def test_a_service_that_speaks_otherwise(talk: Console) -> None:
    """An answer that is not of the API ends a command with a sentence, which holds nothing of the answer."""

    async def asked() -> Exit:
        Batch.model_validate({"id": "batch_\x1b[2J"})
        return Exit.OK

    assert ended(talk, asked()) is Exit.UNREACHABLE
    said = talk.export_text()
    assert "does not speak the Batch API: id: String should match" in said
    assert "2J" not in said


async def test_leaving_does_not_cancel(service: Service, source: Path) -> None:
    """Ctrl-C ends the command, says how to go on, and the batch is none the wiser."""
    service.states = [{"status": "in_progress", "request_counts": {"total": 3, "completed": 1}}]
    command = ["-m", "tidemill", "run", str(source), "--base-url", service.url, "--api-key", KEY]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        stderr=asyncio.subprocess.PIPE,
        # A suite that runs in the background of a shell has SIGINT ignored, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    await until(lambda: service.looks > 0, "a look at the batch")
    process.send_signal(signal.SIGINT)
    _, said = await process.communicate()
    assert process.returncode == Exit.DETACHED
    assert f"tidemill watch batch_1 --input {source}".encode() in said
    assert b"Traceback" not in said
    assert service.cancels == 0
