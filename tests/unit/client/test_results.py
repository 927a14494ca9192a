"""Downloads results, checks them, and writes them without overwriting anything."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from support.folders import contents, put
from support.service import Service, request_lines, result_lines
from support.waiting import until

from tidemill.client.batches import verify, watch
from tidemill.client.errors import Exit, UsageError
from tidemill.client.http.client import Client
from tidemill.client.runs.job import RunOptions, run
from tidemill.client.runs.paths import Sink
from tidemill.terminal import Console


async def test_a_run_downloads_and_checks_its_results(
    service: Service, client: Client, source: Path, console: Console, tmp_path: Path
) -> None:
    """It writes output, errors and receipt where the options say, and the exit code shows that a line failed."""
    output, errors = result_lines("r0", "r2"), result_lines("r1")
    counts = {"total": 3, "completed": 2, "failed": 1}
    service.finish(output, errors, request_counts=counts)
    sink = Sink(output=tmp_path / "out.jsonl", receipt=tmp_path / "receipt.json")
    assert await run(console, client, source, sink, RunOptions()) is Exit.SOME_FAILED
    files = contents(tmp_path)
    assert files.pop("receipt.json").startswith(b"{")
    assert files == {"in.jsonl": request_lines(3), "out.jsonl": output, "out.errors.jsonl": errors}
    assert service.files["file-in"] == request_lines(3)
    assert "3 lines in = 2 out + 1 error, 0 missing, 0 duplicate" in console.export_text()


async def test_without_an_output_path_results_go_to_stdout(
    service: Service, client: Client, source: Path, console: Console, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Nothing else is on stdout."""
    console.file = open("/dev/null", "w")  # noqa: ASYNC230, PTH123, SIM115
    output = result_lines("r0", "r1", "r2")
    service.finish(output, request_counts={"total": 3, "completed": 3})
    assert await run(console, client, source, Sink(), RunOptions()) is Exit.OK
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
async def test_results_that_do_not_match_the_input_are_reported(
    service: Service,
    client: Client,
    source: Path,
    console: Console,
    tmp_path: Path,
    *,
    output: bytes,
    fault: str,
) -> None:
    """The client notices a line that the service lost, doubled or cut."""
    service.finish(output, request_counts={"total": 3, "completed": 3})
    code = await run(console, client, source, Sink(output=tmp_path / "o"), RunOptions())
    assert code is Exit.INEXACT
    assert fault in console.export_text()


async def test_results_that_differ_from_the_receipt_are_reported(
    service: Service, client: Client, source: Path, console: Console, tmp_path: Path
) -> None:
    """`run` has the input, `watch` has not; both compare the hash with the receipt."""
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    service.files["file-out"] = result_lines("r2", "r1", "r0")
    sink = Sink(output=tmp_path / "o")
    assert await run(console, client, source, sink, RunOptions()) is Exit.INEXACT
    assert await watch(console, client, "batch_1", replace(sink, force=True)) is Exit.INEXACT
    assert "SHA-256" in console.export_text()


@pytest.mark.parametrize("there", ["out.jsonl", "out.errors.jsonl", "receipt.json"])
async def test_an_existing_file_is_overwritten_only_with_force(
    service: Service, client: Client, source: Path, console: Console, tmp_path: Path, *, there: str
) -> None:
    """Without force nothing is sent either. With force, files of an earlier run disappear."""
    put(tmp_path / there, b"mine")
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    sink = Sink(output=tmp_path / "out.jsonl", receipt=tmp_path / "receipt.json")
    with pytest.raises(UsageError, match=rf"{there} already exists; --force overwrites it"):
        await run(console, client, source, sink, RunOptions())
    with pytest.raises(UsageError, match="--force"):
        await watch(console, client, "batch_1", sink)
    assert contents(tmp_path) == {"in.jsonl": request_lines(3), there: b"mine"}
    assert "file-in" not in service.files
    assert await run(console, client, source, replace(sink, force=True), RunOptions()) is Exit.OK
    assert set(contents(tmp_path)) == {"in.jsonl", "out.jsonl", "receipt.json"}


@pytest.mark.parametrize("sink", [Sink(errors=Path("e.jsonl")), Sink(receipt=Path("r.json"))])
async def test_paths_of_results_that_are_not_downloaded_are_refused(
    client: Client, console: Console, sink: Sink
) -> None:
    """`watch` downloads nothing without an output path."""
    with pytest.raises(UsageError, match="need -o"):
        await watch(console, client, "batch_1", sink)


async def test_a_file_that_appears_during_the_run_is_not_overwritten(
    service: Service, client: Client, source: Path, console: Console, tmp_path: Path
) -> None:
    """The results are kept, and the same command writes them with force."""
    sink = Sink(output=tmp_path / "out.jsonl")
    service.states = [{"status": "in_progress", "request_counts": {"total": 3, "completed": 1}}]
    task = asyncio.create_task(run(console, client, source, sink, RunOptions()))
    await until(lambda: service.looks > 0, "a look at the batch")
    put(tmp_path / "out.jsonl", b"mine")
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    with pytest.raises(UsageError, match="--force overwrites it"):
        await task
    assert (tmp_path / "out.jsonl").read_bytes() == b"mine"
    assert await run(console, client, source, replace(sink, force=True), RunOptions()) is Exit.OK
    assert (len(service.created), (tmp_path / "out.jsonl").read_bytes()) == (1, result_lines("r0", "r1", "r2"))


def test_impossible_output_paths_are_refused(source: Path, tmp_path: Path) -> None:
    """The input, one path twice, a folder, a device, or a path in a missing folder."""
    for sink, why in (
        (Sink(output=source), "same file"),
        (Sink(output=tmp_path / "a", errors=tmp_path / "a"), "same file"),
        (Sink(output=tmp_path), "is a folder"),
        (Sink(output=tmp_path / "none" / "a"), f"the folder {tmp_path / 'none'} does not exist"),
        (Sink(output=Path("/dev/null")), "not a regular file"),
    ):
        with pytest.raises(UsageError, match=why):
            sink.checked(source)


def test_verify_needs_no_service(source: Path, console: Console, tmp_path: Path) -> None:
    """It checks the files against each other."""
    output = tmp_path / "out.jsonl"
    output.write_bytes(result_lines("r0", "r2"))
    errors = tmp_path / "errors.jsonl"
    errors.write_bytes(result_lines("r1"))
    assert verify(console, source, output, errors) is Exit.OK
    assert verify(console, source, output, None) is Exit.INEXACT
    assert verify(console, source, tmp_path / "none", None) is Exit.USAGE
    assert "for example r1" in console.export_text()
