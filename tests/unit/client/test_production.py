"""`tidemill produce`: its token and its note, and what it checks first; tests/e2e/test_produce.py has the rest."""

import asyncio
import re
from itertools import chain

import pytest
from support.service import KEY, Service

from tidemill.client.errors import Exit, Unreachable, UsageError
from tidemill.client.files import sha256_of
from tidemill.client.http.client import Client
from tidemill.client.production import (
    LINE_BYTES_MAX,
    POLL_SECONDS,
    POLLS_MAX,
    RECORD_LINES_MAX,
    Token,
    packed,
    produce,
)
from tidemill.client.runs.appends import append
from tidemill.client.runs.journal import locked_folder
from tidemill.ingest.streams.decisions import bounded


async def test_a_token_is_renewed_after_half_of_its_lifetime():
    """By the monotonic clock of this machine."""
    times = iter((0.0, 49.0, 50.0, 99.0, 100.0))
    async with Service() as service, Client(service.url, KEY) as client:
        token = Token(client, "crawl", lambda: next(times))
        seen = [(await token.header())[1][-1:] for _ in range(5)]
    assert seen == [b"1", b"1", b"2", b"2", b"3"]


async def test_a_restart_of_the_api_does_not_end_a_long_stream(pauses):
    """The broker has a part of the lines by then, and the command would send them again."""
    times = iter((0.0, 60.0))
    async with Service() as service, Client(service.url, KEY) as client:
        token = Token(client, "crawl", lambda: next(times))
        await token.header()
        service.down = 3
        assert (await token.header())[1] == b"Bearer token-2"
    assert len(pauses) >= 3


async def test_a_file_is_checked_before_its_first_line_is_sent(console, tmp_path):
    """Neither Kafka nor the service is needed for it, and the error names the lines."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"{}\n" + b"x" * (LINE_BYTES_MAX + 1) + b"\n\n{}\n" + b"y" * LINE_BYTES_MAX * 2)
    async with Client("http://127.0.0.1:9/v1", KEY) as client:
        with pytest.raises(UsageError) as error:
            await produce(console, client, "127.0.0.1:9", path, "crawl", ends=True, output="one")
    assert str(error.value).split("\n") == [
        f"{path} has faulty lines; no line was sent.",
        "  line 2: it is longer than 1,044,480 bytes",
        "  line 5: it is longer than 1,044,480 bytes",
    ]


async def test_one_command_at_a_time_sends_to_a_stream(client, console, source):
    """Two would number their records alike, and ingest would drop some."""
    is_running = pytest.raises(UsageError, match="another `tidemill produce` to crawl is running")
    with locked_folder(f"produce {client.base_url} crawl", "command"), is_running:
        await produce(console, client, "127.0.0.1:9", source, "crawl", ends=True, output="one")


def noted(client, content, job="produce {} crawl", name="produced.json"):
    """Write the note of an earlier try, by default of one to send to the stream `crawl`; returns its path."""
    with locked_folder(job.format(client.base_url), "command") as folder:
        note = folder / name
        note.write_bytes(content)
    return note


async def test_a_repeated_command_does_not_end_the_stream_of_another(client, service, console, source, capsys):
    """The file's batch is sealed, and another producer has opened the next one: there is nothing to send."""
    service.ids = ["batch_2", "batch_1"]
    service.listed = {
        "batch_2": {"status": "in_progress", "tidemill": {"stream": "crawl", "open": True}},
        "batch_1": {"tidemill": {"stream": "crawl", "sequence": 5}},
    }
    note = noted(client, b'{"sha256":"%b","first":5}' % sha256_of(source).encode())
    assert await produce(console, client, "127.0.0.1:9", source, "crawl", ends=True, output="one") is Exit.OK
    assert "\nbatch_1\n" in capsys.readouterr().out
    assert not note.exists()


async def test_it_waits_until_ingest_has_handled_an_end(client, service, console, tmp_path, monkeypatch):
    """Each of three records comes after the longest silence that it allows, and it sends none of them again."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"{}\n" * (2 * RECORD_LINES_MAX + 1))
    noted(client, b'{"sha256":"%b","first":5,"may_have_ended":true}' % sha256_of(path).encode())
    later = chain([None] * (POLLS_MAX - 1), [5] * POLLS_MAX, [6] * POLLS_MAX, [7])
    service.ids, sleep = [], asyncio.sleep

    async def pause(_):
        if (number := next(later, None)) is not None:
            service.ids = ["batch_1"]
            service.rows = {"tidemill": {"stream": "crawl", "sequence": number}}
        await sleep(0)

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "sleep", pause)
        code = await produce(console, client, "127.0.0.1:9", path, "crawl", ends=True, output="one")
    assert code is Exit.OK
    assert "batch_1 has 2,001 lines of 2,001" in console.export_text()


@pytest.mark.parametrize("end", [b"true", b"false"])
async def test_the_wait_for_ingest_has_a_bound(client, console, source, pauses, end):
    """Nor does it wait without an end: ingest drops records that it has until the stream ends."""
    noted(client, b'{"sha256":"%b","first":5,"may_have_ended":%b}' % (sha256_of(source).encode(), end))
    with pytest.raises(Unreachable):
        await produce(console, client, "127.0.0.1:9", source, "crawl", ends=True, output="one")
    assert pauses.count(POLL_SECONDS) == (POLLS_MAX if end == b"true" else 0)


DAMAGED = [b"", b'{"sha256":"0', b'{"first":5}', b"[5]", b'{"sha256":"\xff","first":5}', b"[" * 10_000]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
async def test_a_damaged_note_ends_the_command_with_a_reason(client, console, source, content):
    """Nobody knows how much an earlier try has sent, so it sends nothing, and the user decides."""
    note = noted(client, content)
    with pytest.raises(UsageError, match=re.escape(f"{note} cannot be read")):
        await produce(console, client, "127.0.0.1:9", source, "crawl", ends=True, output="one")
    assert note.read_bytes() == content


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
async def test_a_damaged_note_of_appends_ends_the_command_with_a_reason(client, console, source, content):
    """It says which files a batch has, so `tidemill append` sends none."""
    note = noted(client, content, "append {} batch_1", "appended.json")
    with pytest.raises(UsageError, match=re.escape(f"{note} cannot be read")):
        await append(console, client, "batch_1", source, as_json=False)


def test_records_stay_within_the_bounds_of_ingest(tmp_path):
    """Also of the shortest lines, and a mark before the first line is no part of it."""
    path = tmp_path / "in.jsonl"
    lines = [b"{}"] * 2_500 + [b"x" * 60_000] * 2 + [b"y" * LINE_BYTES_MAX]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n \n".join(lines))
    records = list(packed(path))
    assert list(chain.from_iterable(records)) == lines
    assert [len(record) for record in records] == [1000, 1000, 501, 1, 1]
    assert [bounded(b"\n".join(record)) for record in records] == records
