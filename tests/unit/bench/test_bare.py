"""The bare client: every request once, refused ones again, never more calls in flight than it may have."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.backend import Backend, Behaviour
from support.waiting import until

from tidemill.bench.bare import Connection
from tidemill.bench.cases import Case, lines
from tidemill.bench.run import BARE
from tidemill.bench.service import BareError, Mock, run_bare

CASE = Case(name="x", lines=40, in_flight=7)
REPLIES = (
    b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nX-A: b\r\n\r\n{1:}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{1:}\r\n2\r\n{}\r\n0\r\n\r\n",
)


async def made(case: Case, backend: Backend, folder: Path) -> dict[str, float]:
    """Run the bare client in its process over the case's lines."""
    path = folder / "input.jsonl"
    path.write_bytes(b"".join(lines(case)))
    return await run_bare(BARE, case, Mock(backend.url), [path])


def refuse_first(body: dict[str, Any], nth: int) -> Behaviour:
    """Refuse the first call of each line."""
    del body
    refusal = Behaviour(status=429, headers={"Retry-After": "0.01"})
    return refusal if nth == 1 else Behaviour(latency_seconds=0.01)


async def test_each_line_is_called_until_it_is_answered(tmp_path: Path) -> None:
    """With the body of the line, byte for byte, and within the bound."""
    with Backend(refuse_first) as backend:
        found = await made(CASE, backend, tmp_path)
        assert found["calls"] == backend.calls == 80
        bodies = {orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS) for body in backend.bodies}
        assert backend.in_flight_max <= 7
    sent = {orjson.dumps(orjson.loads(line)["body"], option=orjson.OPT_SORT_KEYS) for line in lines(CASE)}
    assert bodies == sent


async def test_the_number_of_calls_in_flight_changes(tmp_path: Path) -> None:
    """As the case says."""
    case = Case(name="x", lines=40, in_flight=1, changes=((0.0, 40),))
    with Backend() as backend:
        backend.hold()
        run = asyncio.ensure_future(made(case, backend, tmp_path))
        await until(lambda: run.done() or backend.in_flight == 40, "all calls in flight")
        backend.release()
        assert (await run)["calls"] == 40


async def test_more_connections_than_calls_in_flight(tmp_path: Path) -> None:
    """Until the change comes, the first number holds."""
    case = Case(name="x", lines=40, in_flight=3, changes=((3600.0, 40),))
    with Backend(lambda _, __: Behaviour(latency_seconds=0.01)) as backend:
        await made(case, backend, tmp_path)
        assert backend.in_flight_max == 3


async def test_a_refusal_for_good_fails_the_run(tmp_path: Path) -> None:
    """Otherwise it would be measured how fast a server refuses."""
    with Backend(lambda _, __: Behaviour(status=400)) as backend, pytest.raises(BareError, match="400"):
        await made(CASE, backend, tmp_path)


@pytest.mark.parametrize("reply", REPLIES, ids=["length", "chunks"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_reply_ends_once_however_it_arrives(reply: bytes, size: int) -> None:
    """By its length or its last chunk."""
    ended = []
    connection = Connection(lambda _, status, whole, __: ended.append((status, whole)))
    for start in range(0, len(reply), size):
        assert not ended
        connection.data_received(reply[start : start + size])
    assert ended == [(b"200", reply)]
