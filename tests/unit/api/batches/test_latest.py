"""Answers about a batch that is over in the log, from an api whose view still shows it as running."""

from dataclasses import replace

import orjson
import pytest
from support.dependencies import batch_of, client_of, open_dependencies
from support.ended_batches import put_ended

from tidemill.api.anthropic.routes import router as message_batches
from tidemill.api.app import create_app
from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.resources.batch import Batch, RequestCounts
from tidemill.storage.directory import DirectoryStore

SHOWN = {"", "/throughput"}
"""Routes of a batch that show it as the view has it, so that polling costs no request to the log."""
APPENDS = {"/requests", "/seal"}
"""Ingest decides about these."""


@pytest.fixture
async def both(tmp_path):
    """Two api processes on one store; the second has not read that a batch is over."""
    for name in "ab":
        (tmp_path / name).mkdir()
    async with open_dependencies(tmp_path / "a") as ahead, open_dependencies(tmp_path / "b") as behind:
        yield ahead, replace(behind, store=ahead.store)


def line(number: int) -> bytes:
    """A line of a file of results."""
    response = {"status_code": 200, "request_id": "", "body": {}}
    return orjson.dumps({"id": "x", "custom_id": str(number), "response": response, "error": None}) + b"\n"


def records_of(deps, batch_id: str) -> list[tuple[str, str, bytes]]:
    """The records of the end of a batch that a view shows."""
    files = [deps.view.file("p", ids.derived_file_id(batch_id, kind)) for kind in ("output", "errors")]
    ended = Batch.model_validate_json(deps.view.batch("p", batch_id))
    record = BatchRecord(project="p", batch=ended, files_offset=1)
    found = [(topics.FILES.name, file.file.id, codec.encode(file)) for file in files]
    return [*found, (topics.BATCHES.name, batch_id, codec.encode(record))]


async def end(ahead, behind, **fields) -> str:
    """End a batch, of which the one is behind by the last records; returns its id."""
    batch_id = ids.new_batch_id()
    running = batch_of(batch_id, request_counts=RequestCounts(total=2, completed=1), **fields)
    behind.view.put_batch(BatchRecord(project="p", batch=running))
    await put_ended(ahead, batch_id, {0: line(0)}, {1: line(1)}, **fields)
    behind.log.unread += records_of(ahead, batch_id)
    return batch_id


def routes(deps) -> list[tuple[str, str]]:
    """Method and path of all routes of a batch."""
    paths = [route for route in create_app(deps).router.routes if "/{batch_id}" in getattr(route, "path", "")]
    assert len(paths) > len(SHOWN | APPENDS)
    rest = [(route, route.path.partition("/{batch_id}")[2]) for route in paths]
    wanted = [route for route, end in rest if "GET" not in route.methods or end not in SHOWN]
    return [
        (method, route.path)
        for route in wanted
        for method in route.methods - {"HEAD"}
        if route.path.partition("/{batch_id}")[2] not in APPENDS
    ]


async def test_each_route_answers_as_the_process_that_has_shown_the_end(both):
    """A client that a balancer sends to another process for each request must not see the end undone."""
    ahead, behind = both
    asked = routes(ahead)
    for method, path in asked:
        endpoint = "/v1/messages" if path.startswith(message_batches.prefix) else "/v1/embeddings"
        batch_id = await end(ahead, behind, endpoint=endpoint)
        second = await end(ahead, behind, endpoint=endpoint)
        answers = []
        for deps in (behind, ahead):
            async with client_of(deps, base="http://api") as client:
                answer = await client.request(
                    method, path.format(batch_id=batch_id), params={"with": second} if "compare" in path else None,
                    json={} if method == "POST" else None,
                )  # fmt: skip
            shown = answer.text.replace(answer.headers["x-request-id"], "")
            answers.append((answer.status_code, shown))
        assert answers[0] == answers[1], (method, path)
    paths = {path.rpartition("}")[2] for _, path in asked}
    assert {"/results", "/errors", "/receipt", "/compare", "/rerun", "/cancel"} <= paths


class _EndsMeanwhile(DirectoryStore):
    """A store in which a batch ends, and its parts are deleted, as they are listed."""

    def __init__(self, root, end) -> None:
        super().__init__(root)
        self.end = end

    async def keys(self, prefix):
        """List nothing."""
        await self.end()
        async for key in super().keys(prefix):
            yield key


async def test_a_batch_that_ends_while_its_parts_are_listed(both, tmp_path):
    """A page looks at the log after it has listed the parts: they may have been deleted before."""
    ahead, behind = both
    ended = []

    async def ends() -> None:
        if not ended:
            ended.append(batch_id)
            await put_ended(ahead, batch_id, {0: line(0)}, {1: line(1)})
            behind.log.unread += records_of(ahead, batch_id)

    batch_id = ids.new_batch_id()
    behind.view.put_batch(BatchRecord(project="p", batch=batch_of(batch_id)))
    async with client_of(replace(behind, store=_EndsMeanwhile(tmp_path / "a" / "store", ends))) as client:
        page = (await client.get(f"/batches/{batch_id}/results")).json()
    assert ended
    assert [each["index"] for each in page["data"]] == [0, 1]


async def test_without_the_log_a_running_batch_has_no_results(both):
    """An empty page would look like the end of all pages; an ended batch needs no log."""
    ahead, behind = both
    batch_id = await end(ahead, behind)
    behind.log.away = ahead.log.away = True
    with pytest.raises(LogUnavailable):
        await behind.reading.catch_up(topics.BATCHES.name)
    for deps, status in ((ahead, 200), (behind, 503)):
        async with client_of(deps) as client:
            for path in ("results", "errors", "receipt"):
                assert (await client.get(f"/batches/{batch_id}/{path}")).status_code == status, path


async def test_a_batch_says_since_when_the_log_has_not_been_read(both):
    """One that ended before does not wait, and none does while the log is read."""
    ahead, behind = both
    batch_id = await end(ahead, behind)
    since = {topics.BATCHES.name: 1_790_000_000.0}
    for deps, silent, waits in ((behind, {}, []), (behind, since, ["delivery"]), (ahead, since, [])):
        reading = replace(deps.reading, silent_since=silent.get)
        async with client_of(replace(deps, reading=reading)) as client:
            one = (await client.get(f"/batches/{batch_id}")).json()
            (listed,) = (await client.get("/batches")).json()["data"]
        assert listed == one
        assert [each["reason"] for each in one["tidemill"]["waiting"]] == waits
    async with client_of(replace(behind, reading=replace(behind.reading, silent_since=since.get))) as client:
        (wait,) = (await client.get(f"/batches/{batch_id}")).json()["tidemill"]["waiting"]
    assert (wait["lines"], wait["since"]) == (1, 1_790_000_000)
    assert "since 2026-09-21 14:13:20 UTC" in wait["message"]
