"""The commands `list`, `cancel` and `run`: how they name batches, and which inputs and services they refuse."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support.service import KEY, Service, result_lines

from tidemill import AsyncTidemill
from tidemill.client import errors
from tidemill.client.batches import cancel, delete, show, watch
from tidemill.client.errors import Exit, Refused, Unreachable, UsageError
from tidemill.client.http import connection
from tidemill.client.http.answer import Answer
from tidemill.client.http.client import Bounds, Client
from tidemill.client.maps.job import MapOptions
from tidemill.client.runs import job
from tidemill.client.runs.job import RunOptions, run
from tidemill.client.runs.paths import Sink, endpoint_of, metadata_of
from tidemill.client.runs.plan import cut
from tidemill.schemas.resources.batch import Batch
from tidemill.terminal import Console

SHORT_ID = "00000001"
LISTED = tuple(f"batch_{'0' * 24}{number:08x}" for number in range(3))
"""Complete ids; `SHORT_ID` names the second."""


async def test_the_first_or_last_characters_of_an_id_are_enough(
    service: Service, client: Client, console: Console
) -> None:
    """If exactly one of the newest batches has them."""
    service.ids = [f"batch_abcd{n:02x}{'0' * 22}{n:04x}" for n in range(1, 130)]
    assert await client.find("batch_abcd7f") == await client.find("0000007f") == service.ids[126]
    assert await client.find(service.ids[3]) == service.ids[3]
    for text, count in (("abcd", "129 batches match"), ("ffff", "no match among the newest")):
        with pytest.raises(UsageError, match=count):
            await client.find(text)
    await cancel(console, client, "0007f")
    assert service.cancels == 1


async def test_a_damaged_file_ends_a_watch_at_once(
    service: Service, client: Client, console: Console, tmp_path: Path
) -> None:
    """With what the operator can do; the batch has ended, and the service answers."""
    service.finish(result_lines("r0"), request_counts={"total": 1, "completed": 1})
    service.damaged.add("file-out")
    with pytest.raises(Refused, match="is damaged"):
        await watch(console, client, "batch_1", Sink(output=tmp_path / "out.jsonl"))
    said = console.export_text()
    assert "tidemill rebuild batch_1 --write" in said
    assert "keeps running" not in said


async def test_delete_says_what_became_of_the_input(service: Service, client: Client, console: Console) -> None:
    """It stays without the option; with it the command may be repeated, and keeps what another batch has."""
    service.files["file-in"] = b"{}"

    async def said(*, takes_input: bool) -> str:
        assert await delete(console, client, LISTED[1], takes_input=takes_input) is Exit.OK
        return console.export_text()

    assert await said(takes_input=False) == f"Deleted {LISTED[1]} and its results.\n"
    assert "file-in" in service.files
    for end in ("Deleted its input file.", "Its input file is gone."):
        assert await said(takes_input=True) == f"Deleted {LISTED[1]} and its results.\n{end}\n"
        assert "file-in" not in service.files
    service.files["file-in"], service.created = b"{}", [{}, {}]
    assert "Its input file stays: another batch has it." in await said(takes_input=True)
    assert "file-in" in service.files


async def test_a_deletion_whose_answer_is_lost_is_sent_again(
    service: Service, client: Client, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own first try may have deleted the input, so it does not say when that went."""
    monkeypatch.setattr(connection, "PAUSE_SECONDS_MAX", 0.01)
    service.ids, service.files["file-in"], service.lost = list(LISTED), b"{}", 1
    assert await delete(console, client, SHORT_ID, takes_input=True) is Exit.OK
    assert console.export_text() == f"Deleted {LISTED[1]} and its results.\nIts input file is gone.\n"


@pytest.mark.parametrize("takes_input", [False, True])
async def test_a_deletion_without_an_answer_can_be_repeated(
    service: Service, client: Client, console: Console, monkeypatch: pytest.MonkeyPatch, takes_input: bool
) -> None:
    """It says the complete id: after the deletion the list no longer completes a short one."""
    monkeypatch.setattr(connection, "TRIES_MAX", 1)
    service.ids, service.lost = list(LISTED), 10
    with pytest.raises(Unreachable):
        await delete(console, client, SHORT_ID, takes_input=takes_input)
    service.lost = 0
    option = "--input " if takes_input else ""
    assert f"`tidemill delete {option}{LISTED[1]}`" in console.export_text()
    with pytest.raises(UsageError, match="no match"):
        await delete(console, client, SHORT_ID, takes_input=takes_input)
    assert await delete(console, client, LISTED[1], takes_input=takes_input) is Exit.OK


async def test_cancel_and_list(
    service: Service, client: Client, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list has one batch a line."""
    assert await cancel(console, client, "batch_1") is Exit.OK
    assert service.cancels == 1
    assert await show(client, limit=3, as_json=True) is Exit.OK
    assert capsys.readouterr().out.count("\n") == 4
    assert await show(client, limit=3, as_json=False) is Exit.OK
    assert "batch_2" in capsys.readouterr().out


async def test_a_list_fits_a_terminal(
    service: Service, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """Long names are cut so that a row has 80 columns."""
    long = {"name": "the-nightly-run-of-2026-11-23.jsonl"}
    counts = {"total": 50_000, "completed": 50_000}
    service.rows = {
        "status": "in_progress",
        "model": "org/a-model-of-32b",
        "request_counts": counts,
        "tidemill": long,
    }
    service.ids = [f"batch_{'0' * 24}1a2b3c4d"]
    await show(client, limit=1, as_json=False)
    head, row = capsys.readouterr().out.splitlines()
    assert max(len(head.rstrip()), len(row.rstrip())) <= 80
    assert row.split()[:5] == [
        "1a2b3c4d",
        "…of-2026-11-23.jsonl",
        "in_progress",
        "50,000/50,000",
        "…/a-model-of-32b",
    ]
    shares = [{"model": model, "request_counts": {"total": 1}} for model in ("a", "b")]
    service.rows |= {"model": None, "tidemill": long | {"models": shares}}
    await show(client, limit=1, as_json=False)
    assert capsys.readouterr().out.splitlines()[1].split()[4:6] == ["2", "models"]
    service.rows = {**service.rows, "status": "failed", "tidemill": long}
    await show(client, limit=1, as_json=False)
    assert " rejected " in capsys.readouterr().out.splitlines()[1]
    service.rows["status"] = "in_progress"
    for reason, shown in {
        "no_processor": "no processor",
        "server_refuses": "refuses",
        "in_flight": "in flight",
    }.items():
        waits = [{"reason": reason, "lines": 9, "message": "It waits.", "since": 1}]
        service.rows["tidemill"] = long | {"waiting": waits}
        await show(client, limit=1, as_json=False)
        row = capsys.readouterr().out.splitlines()[1]
        assert shown in row
        assert len(row.rstrip()) <= 80


async def test_a_batch_has_name_and_metadata(
    service: Service, client: Client, source: Path, console: Console
) -> None:
    """Each key of the metadata comes once."""
    service.finish(result_lines("r0", "r1", "r2"), request_counts={"total": 3, "completed": 3})
    order = RunOptions(metadata=metadata_of(["team=a", "x=1=2"]) | {"name": "nightly"})
    assert await run(console, client, source, Sink(), order) is Exit.OK
    assert service.created[0]["metadata"] == {"team": "a", "x": "1=2", "name": "nightly"}
    for wrong in (["team"], ["=a"], ["a=1", "a=2"]):
        with pytest.raises(UsageError, match="KEY=VALUE"):
            metadata_of(wrong)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"hello\n", b"[]\n", b'{"url":"/nothing"}\n'])
async def test_a_file_without_requests_is_not_uploaded(
    service: Service, client: Client, console: Console, tmp_path: Path, content: bytes
) -> None:
    """The client checks the first line before it uploads."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    with pytest.raises(UsageError):
        await run(console, client, source, Sink(), RunOptions())
    assert service.files == {}


@pytest.mark.parametrize("content", [b'[{"custom_id": "1"}]', b'[\n  {"custom_id": "1"}\n]'])
def test_an_array_is_named(tmp_path: Path, content: bytes) -> None:
    """It is the usual mistake of programs that write JSON."""
    source = tmp_path / "in.json"
    source.write_bytes(content)
    with pytest.raises(UsageError, match=r"line 1 .*begins with `\[`; each line is a JSON object"):
        endpoint_of(source)


async def test_an_empty_stdin_is_called_stdin(
    client: Client, console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not by the temporary file that it is copied to."""
    empty = tmp_path / "empty"
    empty.touch()
    monkeypatch.setattr(job, "open", lambda *_, **__: empty.open("rb"), raising=False)
    with pytest.raises(UsageError, match="stdin is empty"):
        await run(console, client, Path("-"), Sink(), RunOptions())


async def test_an_empty_list_of_lines_is_not_called_by_a_temporary_file(service: Service) -> None:
    """The library writes lines into one."""
    async with AsyncTidemill(base_url=service.url, api_key=KEY) as client:
        with pytest.raises(UsageError, match="the input is empty"):
            await client.submit([])


@pytest.mark.parametrize(
    ("encoding", "why"),
    [
        ("utf-16", "encoded as UTF-16; save it as UTF-8 (`iconv -f UTF-16 -t UTF-8 FILE`)"),
        ("utf-16-be", "encoded as UTF-16"),
        ("utf-32", "encoded as UTF-32"),
        ("cp1252", "0xe4 is not UTF-8; if it should be 'ä', it is Windows-1252: save it"),
    ],
)
def test_a_wrong_encoding_is_named(tmp_path: Path, encoding: str, why: str) -> None:
    """In the first line, and in any line of a file that exceeds a batch, before an upload."""
    line = '{"custom_id": "%s", "url": "/v1/embeddings", "x": "%s"}\n'
    source = tmp_path / "in.jsonl"
    source.write_bytes((line % ("a", "ä")).encode(encoding))
    with pytest.raises(UsageError, match=re.escape(why)):
        endpoint_of(source)
    source.write_bytes((line % ("a", "a")).encode() + (line % ("b", "ä")).encode(encoding))
    with pytest.raises(UsageError, match=r"line 2: .*(UTF-16|UTF-32|Windows-1252)"):
        cut(source, Bounds(lines_max=1), endpoint="/v1/embeddings")


def test_an_unreachable_service_and_a_missing_file_have_exit_codes(console: Console) -> None:
    """The message names the address in plain words."""

    async def asked(url: str, command: Callable[[Client], Awaitable[Exit]]) -> Exit:
        async with Client(url, "x") as client:
            return await command(client)

    nowhere = "http://127.0.0.1:1/v1"
    for url, why in (
        (nowhere, "no service answers at http://127.0.0.1:1/v1: Connection refused; check the"),
        ("here", "here is not a valid address; expected http://HOST:PORT/v1"),
        ("http://nothing.invalid/v1", "the host name in http://nothing.invalid/v1 does not resolve"),
    ):
        code = errors.run(console, lambda url=url: asked(url, lambda client: cancel(console, client, "batch_1")))
        assert code is Exit.UNREACHABLE
        assert console.export_text().startswith(f"tidemill: {why}")
    source = Path("/nonexistent")
    missing = asked(nowhere, lambda client: run(console, client, source, Sink(), RunOptions()))
    assert errors.run(console, lambda: missing) is Exit.USAGE


def test_an_answer_of_another_api_ends_the_command(console: Console) -> None:
    """The message names the wrong field, but repeats nothing of the answer."""

    async def asked() -> Exit:
        Answer({"id": "batch_\x1b[2J"}, 200, "http://127.0.0.1:1", "/v1/batches").read(Batch)
        return Exit.OK

    assert errors.run(console, asked) is Exit.USAGE
    said = console.export_text()
    assert "does not speak the Batch API: 200 at /v1/batches: id: String should match" in said
    assert "2J" not in said


async def test_an_input_that_does_not_exist_is_named_before_the_wait(
    service: Service, client: Client, console: Console, tmp_path: Path
) -> None:
    """The batch may take hours."""
    with pytest.raises(UsageError, match=r"in\.jsonl does not exist"):
        await watch(console, client, "batch_1", Sink(output=tmp_path / "out.jsonl"), tmp_path / "in.jsonl")
    assert service.looks == 0


@pytest.mark.parametrize("options", [RunOptions, lambda **more: MapOptions(output="o.csv", **more)])
def test_no_batch_at_a_time_is_refused(options: Callable[..., object]) -> None:
    """Nothing would ever run, and the result would look whole."""
    for parallel in (0, -1):
        with pytest.raises(UsageError, match="parallel must be at least 1"):
            options(parallel=parallel)
