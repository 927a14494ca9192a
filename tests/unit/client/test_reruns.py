"""Request bodies of `rerun` and `replay`, and how they write results."""

import asyncio
import datetime as dt

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from support.service import result_lines
from support.waiting import until

from tidemill.client.batches import watch
from tidemill.client.errors import Exit, UsageError
from tidemill.client.http.client import Client
from tidemill.client.reruns import absolute, create, is_fixed, replay_body, rerun_body
from tidemill.client.runs.paths import Sink
from tidemill.terminal import Console

OLD = f"batch_{'0' * 32}"
NOW = dt.datetime(2026, 11, 23, 9, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("only", "lines"),
    [
        ("unfinished", "unfinished"),
        ("failed", "failed"),
        ("expired", "expired"),
        ("cancelled", "cancelled"),
        ("all", "all"),
        ("code=429", {"codes": ["429"]}),
        ("code=429,batch_expired", {"codes": ["429", "batch_expired"]}),
    ],
)
def test_lines_are_chosen_by_name_or_code(only, lines):
    """Options that are not given are left out."""
    assert rerun_body(only=only, model=None, window=None) == {"lines": lines}
    assert rerun_body(only=only, model="m", window="7d") == {
        "lines": lines,
        "model": "m",
        "completion_window": "7d",
    }


@pytest.mark.parametrize("only", ["", "some", "code=", "code=,", "codes"])
def test_an_unknown_choice_of_lines_is_refused(only):
    """The error lists the known ones."""
    with pytest.raises(UsageError, match="is not one of unfinished, failed, expired, cancelled, all or code=CODE"):
        rerun_body(only=only, model=None, window=None)


@pytest.mark.parametrize(
    ("text", "edge"),
    [
        ("-90m", "2026-11-23T07:30:00.000+00:00"),
        ("-1d", "2026-11-22T09:00:00.000+00:00"),
        ("42", "42"),
        ("2026-11-23T09:00:00Z", "2026-11-23T09:00:00Z"),
    ],
)
def test_relative_times_become_absolute(text, edge):
    """Times and offsets stay as they are."""
    assert absolute(text, NOW) == edge


@pytest.mark.parametrize("text", ["", "2h", "-2x", "yesterday", "12:00"])
def test_an_edge_in_another_form_is_refused(text):
    """The error shows the forms; some of them only the client knows."""
    with pytest.raises(UsageError, match=r"neither a time like .*Z or -2h nor a log offset"):
        replay_body({"model": "m", "from": text}, model=None, window=None, now=NOW)


def test_the_body_of_a_replay():
    """Both edges may be relative."""
    source = {"model": "m", "from": "-1h", "to": "-1s"}
    assert replay_body(source, model="n", window=None, now=NOW) == {
        "source": {"model": "m", "from": "2026-11-23T08:00:00.000+00:00", "to": "2026-11-23T08:59:59.000+00:00"},
        "model": "n",
    }


@pytest.mark.parametrize(
    ("edges", "fixed"),
    [
        ({"from": "0", "to": "2026-11-23T09:00:00Z"}, True),
        ({"from": "0"}, False),
        ({"from": "0", "to": "-1h"}, False),
        ({"from": "-1h", "to": "9"}, False),
    ],
)
def test_a_range_is_fixed_if_both_edges_are_absolute(edges, fixed):
    """Another range is a new batch at each call."""
    assert is_fixed({"model": "m", **edges}) is fixed


async def test_a_file_that_appears_during_a_rerun_is_not_overwritten(service, client, tmp_path):
    """The message has the command that downloads the results."""
    output, console = tmp_path / "out.jsonl", Console(record=True)
    service.states = [{"status": "in_progress"}]
    task = asyncio.create_task(create(console, client, OLD, {}, Sink(output=output)))
    await until(lambda: service.looks > 0, "a look at the batch")
    output.write_bytes(b"mine")
    service.finish(result_lines("r0"), request_counts={"total": 1, "completed": 1})
    with pytest.raises(UsageError, match="--force overwrites it"):
        await task
    assert output.read_bytes() == b"mine"
    # A path is as long as it is, and may be broken anywhere; the program is named as it was called.
    assert f"tidemillwatchbatch_1-o{output}`" in "".join(console.export_text().split())
    assert await watch(console, client, "batch_1", Sink(output=output, force=True)) is Exit.OK
    assert output.read_bytes() == result_lines("r0")


@pytest.mark.parametrize("dry_run", [False, True])
async def test_a_replay_of_two_endpoints_names_the_option(tmp_path, *, dry_run):
    """The service names the field of the request."""

    async def refuse(request):
        await request.read()
        error = {
            "message": "The range has lines for two: name one with 'source.endpoint'.",
            "type": "invalid_request_error",
        }
        return web.json_response({"error": error}, status=400)

    app = web.Application()
    app.router.add_post("/v1/replays", refuse)
    async with TestServer(app) as server, Client(str(server.make_url("/v1")), "k") as client:
        with pytest.raises(UsageError, match="name one with --endpoint"):
            await create(Console(), client, None, {}, Sink(output=tmp_path / "out.jsonl"), dry_run=dry_run)


async def test_a_rerun_whose_batch_is_deleted(service, client, tmp_path):
    """Its idempotency key is used up, so the message names --again."""
    service.is_deleted = True
    sink = Sink(output=tmp_path / "out.jsonl")
    with pytest.raises(UsageError, match="is deleted; --again creates a new one"):
        await create(Console(), client, OLD, {}, sink)
