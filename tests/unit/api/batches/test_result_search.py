"""Search of finished lines: a request reads a bounded part, and its cursor says how far it has come."""

import orjson
import pytest
from support.dependencies import batch_of, client_of, open_dependencies
from support.ended_batches import put_ended

from tidemill.api.batches import comparison, result_search
from tidemill.results.files.compaction import write_part
from tidemill.results.state.active_batch import PartBuffer
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.log.part import part_prefix
from tidemill.schemas.resources.batch import RequestCounts

BATCH = "batch_" + "3" * 32
LINES = 60
"""Each fifth failed, each tenth of these with another code."""


@pytest.fixture
async def client(tmp_path):
    """A client of an api with an ended batch."""
    async with open_dependencies(tmp_path) as deps:
        output = {index: line(index) for index in range(LINES) if index % 5}
        await put_ended(deps, BATCH, output, {n: line(n, failed=True) for n in range(0, LINES, 5)})
        async with client_of(deps) as client:
            yield client


def line(index: int, *, failed: bool = False) -> bytes:
    """A line of the output, or of the error file."""
    body = {"text": f'number {index}: Größe 100% "quoted"\n'}
    error = {"code": "expired" if index % 10 else "boom", "message": "m"} if failed else None
    response = None if failed else {"status_code": 200, "request_id": "r", "body": body}
    shown = {"id": f"r{index}", "custom_id": f"line-{index}", "response": response, "error": error}
    if index % 3 == 0:
        shown["tidemill"] = {"attempts": 1, "server": f"gpu-{index % 2}", "seconds": 0.25}
    # As a server may have written it: not in UTF-8.
    return orjson.dumps(shown).replace("ö".encode(), b"\\u00f6") + b"\n"


async def found(client, **wanted: object) -> list[int]:
    """The indices of all pages of a search."""
    indices, after, pages = [], -1, 0
    while True:
        answer = await client.get(f"/batches/{BATCH}/results", params={"after": after, **wanted})
        page = answer.raise_for_status().json()
        indices += [each["index"] for each in page["data"]]
        pages += 1
        if not page["has_more"]:
            return indices
        assert page["next_after"] > after
        assert pages <= LINES + 1
        after = page["next_after"]


@pytest.mark.parametrize("bounds", [{}, {"STEP_LINES": 4, "SCAN_LINES_MAX": 8}, {"SCAN_BYTES_MAX": 1}])
@pytest.mark.parametrize("limit", [1, 3, 1_000])
async def test_a_search_finds_each_line_once(client, monkeypatch, bounds, limit):
    """With any bound of a request and of a page."""
    for name, value in bounds.items():
        monkeypatch.setattr(result_search, name, value)
    failed = list(range(0, LINES, 5))
    for wanted, expected in (
        ({"custom_id": "line-7"}, [7]),
        ({"custom_id": "line-70"}, []),
        ({"contains": "GRÖSSE"}, []),
        ({"contains": "größe 100%", "status": "completed"}, [n for n in range(LINES) if n % 5]),
        ({"contains": '"quoted"\n'}, [n for n in range(LINES) if n % 5]),
        ({"contains": "number 1"}, [1, *(n for n in range(11, 20) if n % 5)]),
        ({"code": "boom"}, [n for n in failed if n % 10 == 0]),
        ({"code": "boom", "status": "completed"}, []),
        ({"code": "expired", "custom_id": "line-5"}, [5]),
        ({"status": "failed"}, failed),
        ({"server": "gpu-1"}, [n for n in range(LINES) if n % 6 == 3]),
        ({"server": "gpu"}, []),
    ):
        assert await found(client, limit=limit, **wanted) == expected, wanted


async def test_a_cut_file_is_an_error(client, tmp_path):
    """The lines that are left would pass for whole ones."""
    for path in (tmp_path / "store" / "files").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    answer = await client.get(f"/batches/{BATCH}/results")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "file_damaged")


async def test_a_request_reads_a_bounded_part(client, monkeypatch):
    """Also if nothing matches; a jump to a line reads nothing before it."""
    monkeypatch.setattr(result_search, "STEP_LINES", 4)
    monkeypatch.setattr(result_search, "SCAN_LINES_MAX", 8)
    page = (await client.get(f"/batches/{BATCH}/results", params={"contains": "nothing"})).json()
    assert (page["data"], page["has_more"], page["next_after"]) == ([], True, 7)
    page = (await client.get(f"/batches/{BATCH}/results", params={"after": 41, "limit": 1})).json()
    assert [each["index"] for each in page["data"]] == [42]


ODD = {
    "a number": b'{"text":"Yes","n":1e999}',
    "digits": b'{"text":"Yes","n":%s}' % (b"9" * 400),
    "levels": b'{"text":"Yes","n":%s}' % (b"[" * 300 + b"]" * 300),
}
"""Replies that processors accept, and that the parser or the writer of the search refuses."""


@pytest.mark.parametrize("body", ODD.values(), ids=list(ODD))
def test_an_odd_reply_is_found_and_compared(body):
    """By what the server wrote: an error would hide all later lines of the batch, too."""
    text = (
        b'{"id":"r","custom_id":"a","response":{"status_code":200,"request_id":"q","body":%s},"error":null}' % body
    )
    assert result_search.ResultsQuery(contains="YES", custom_id="a").matches(text, failed=False)
    assert not result_search.ResultsQuery(contains="no such").matches(text, failed=False)
    assert comparison.answer(text) == comparison.answer(text)
    assert comparison.answer(text) != comparison.answer(text.replace(b"Yes", b"No"))


async def put_running(deps) -> None:
    """Show a batch whose lines are in one part."""
    buffer = PartBuffer()
    for index in range(3):
        buffer.add([LineMark(index=index, size=len(line(index)), failed=False)], line(index))
    await write_part(deps.store, BATCH, 0, buffer, failed=False)
    batch = batch_of(BATCH, request_counts=RequestCounts(total=3))
    deps.view.put_batch(BatchRecord(project="p", batch=batch))


@pytest.mark.parametrize("wanted", [{}, {"contains": "number"}], ids=["page", "search"])
async def test_a_batch_may_end_while_its_page_is_made(tmp_path, monkeypatch, wanted):
    """Results deletes the parts before the first line is read; the page then comes from the files."""
    async with open_dependencies(tmp_path) as deps, client_of(deps) as client:
        await put_running(deps)
        read, reads = deps.lines.read, []

        async def ended(found):
            reads.append(found)
            # A search reads its lines twice: to find them, and to show them.
            if len(reads) == 1 + bool(wanted):
                await put_ended(deps, BATCH, {index: line(index) for index in range(3)}, {})
                async for key in deps.store.keys(part_prefix(BATCH)):
                    await deps.store.delete(key)
            async for text in read(found):
                yield text

        monkeypatch.setattr(deps.lines, "read", ended)
        page = (await client.get(f"/batches/{BATCH}/results", params=wanted)).raise_for_status().json()
        assert [each["index"] for each in page["data"]] == [0, 1, 2]
        assert page["data"][1]["result"]["custom_id"] == "line-1"


@pytest.mark.parametrize("error", [OSError("away"), TimeoutError()])
async def test_a_page_from_a_store_that_fails_is_a_503(tmp_path, monkeypatch, error):
    """The client may try again; it gets no part of a page with status 200."""
    async with open_dependencies(tmp_path) as deps, client_of(deps) as client:
        await put_running(deps)

        async def failing(_found):
            raise error
            yield

        monkeypatch.setattr(deps.lines, "read", failing)
        answer = await client.get(f"/batches/{BATCH}/results")
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
