"""Server-sent events over real sockets: the latest state of changed objects, in bounded memory, to valid keys."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import httpx
import orjson
import pytest
from support.dependencies import ADMIN, NOW, READER, batch_of, open_dependencies, with_settings
from support.waiting import WAIT_SECONDS_MAX, until

from tidemill.api import changes
from tidemill.api.app import create_app
from tidemill.api.changes import ChangeFeed
from tidemill.api.http.server import Server
from tidemill.api.routes import events
from tidemill.configuration.connections import Connections
from tidemill.configuration.settings import Settings
from tidemill.runtime.listening import listen
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import BatchRecord, Erasure, FileRecord
from tidemill.schemas.resources.batch import Batch, RequestCounts
from tidemill.schemas.resources.file import File
from tidemill.schemas.resources.load import ProcessReport

SETTINGS = Settings(connections=Connections(connections_max=64, per_address_max=0))
"""Half of the connections, 32, may be streams; projects share them."""
Event = tuple[str, str, dict]
"""Type, id and data."""


@pytest.fixture
async def deps(tmp_path):
    """New dependencies."""
    async with open_dependencies(tmp_path) as deps:
        yield with_settings(deps, SETTINGS)


@pytest.fixture
async def url(deps):
    """The address of a served API."""
    serving = Server(create_app(deps), SETTINGS)
    with listen("127.0.0.1", 0) as listening:
        task = asyncio.create_task(serving.serve(sockets=[listening]))
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        deps.events.close()
        serving.should_exit = True
        await task


def batch(number: int = 0, completed: int = 0, **fields: object) -> Batch:
    counts = RequestCounts(total=1_000_000, completed=completed)
    return batch_of(f"batch_{number:032x}", request_counts=counts, **fields)


def put(deps, *batches: Batch, project: str = "p") -> None:
    for each in batches:
        deps.view.put_batch(BatchRecord(project=project, batch=each))


@contextlib.asynccontextmanager
async def following(url: str, key: str = "key-of-p", *, last: str | None = None, **query: str):
    """The events of a stream, one by one."""
    headers = {"authorization": f"Bearer {key}"} | ({"last-event-id": last} if last else {})
    async with (
        asyncio.timeout(WAIT_SECONDS_MAX),
        httpx.AsyncClient(base_url=url, headers=headers, timeout=WAIT_SECONDS_MAX) as client,
        client.stream("GET", "/events", params=query) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield parsed(answer.aiter_lines())


async def parsed(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    """The events in lines of the format, without comments."""
    found: dict[str, str] = {}
    async for line in lines:
        name, _, value = line.partition(": ")
        if line:
            found[name] = value
        elif "event" in found:
            yield found["event"], found["id"], orjson.loads(found["data"])
            found = {}


async def test_a_stream_has_the_latest_state_of_each_object(deps, url):
    """As the API shows it, of the project's own objects; many changes of one are one event."""
    file = File(id="file-1", bytes=1, created_at=NOW, filename="f", purpose="batch")
    async with following(url) as stream, httpx.AsyncClient(base_url=url, timeout=WAIT_SECONDS_MAX) as client:
        assert (await anext(stream))[0] == "reset"
        put(deps, batch(1), project="q")
        put(deps, *(batch(0, completed) for completed in range(1_000)))
        deps.view.put_file(FileRecord(project="p", file=file, key="k", sha256="0" * 64), 0)
        kind, _, shown = await anext(stream)
        client.headers["authorization"] = "Bearer key-of-p"
        assert (kind, shown) == ("batch", (await client.get(f"/batches/{shown['id']}")).json())
        assert shown["request_counts"]["completed"] == 999
        assert (await anext(stream))[::2] == ("file", (await client.get("/files/file-1")).json())
        deps.view.drop_file("file-1", 1)
        assert (await anext(stream))[::2] == ("file", {"id": "file-1", "object": "file", "deleted": True})
        deps.view.delete_batch(shown["id"], Erasure(project="p", at=NOW))
        assert (await anext(stream))[2] == {"id": shown["id"], "object": "batch", "deleted": True}
        deps.events.publish_to_all("catalog", "")
        assert (await anext(stream))[::2] == ("catalog", {"object": "catalog"})


async def test_an_object_comes_once_a_second(deps, url, monkeypatch):
    """However often it changes, and the last state comes."""
    monkeypatch.setattr(changes, "PAUSE_SECONDS", 0.2)
    woken = []
    wake = ChangeFeed._wake
    now = asyncio.get_running_loop().time
    monkeypatch.setattr(ChangeFeed, "_wake", lambda *given: (woken.append(now()), wake(*given)))
    seen = []
    async with following(url, types="batch") as stream:
        await anext(stream)
        for number in range(300):
            put(deps, batch(completed=number))
            await asyncio.sleep(0)
            if number % 30 == 0:
                seen.append((await anext(stream))[2]["request_counts"]["completed"])
        while seen[-1] != 299:
            seen.append((await anext(stream))[2]["request_counts"]["completed"])
    assert seen == sorted(set(seen))
    assert min(later - before for before, later in itertools.pairwise(woken)) >= 0.19


async def test_a_client_that_comes_back_misses_nothing(deps, url):
    """It gets what changed since its last event; if the process does not know that, it reads everything anew."""
    async with following(url) as stream:
        await anext(stream)
        put(deps, batch(0), batch(1))
        _, last, _ = await anext(stream)
    put(deps, batch(2))
    async with following(url, last=last) as stream:
        assert [(await anext(stream))[2]["id"] for _ in range(2)] == [batch(1).id, batch(2).id]
    for unknown in ("0" * 8 + "-1", f"{last.partition('-')[0]}-999999"):
        async with following(url, last=unknown) as stream:
            assert (await anext(stream))[0] == "reset"
    put(deps, *(batch(number) for number in range(changes.OBJECTS_MAX + 2)))
    async with following(url, last=last) as stream:
        assert (await anext(stream))[0] == "reset"


@pytest.mark.parametrize("others", [0, 1_000])
async def test_ids_of_events_tell_nothing_of_other_projects(deps, url, others):
    """They count the changes of the project alone."""
    async with following(url) as stream, following(url, "key-of-q") as other:
        seen = [await anext(stream), await anext(other)]
        put(deps, *(batch(number) for number in range(others)), project="q")
        for number in range(3):
            put(deps, batch(number))
            seen.append(await anext(stream))
    assert [int(found.partition("-")[2]) for _, found, _ in seen] == [0, 0, 1, 2, 3]


async def test_an_id_of_a_forgotten_feed_is_unknown(deps, url, monkeypatch):
    """Though the new one counts from the same number."""
    monkeypatch.setattr(changes, "IDLE_PROJECTS_MAX", 0)
    last = None
    for _ in range(2):
        async with following(url, last=last) as stream:
            kind, last, _ = await anext(stream)
            assert (kind, last.partition("-")[2]) == ("reset", "0")
        await until(lambda: not deps.events._projects, "the end of the feed")


async def test_a_slow_client_costs_no_memory(deps, url, monkeypatch):
    """It gets a reset in place of more than the feed remembers, or than goes out at once."""
    monkeypatch.setattr(changes, "PAUSE_SECONDS", 0.05)
    async with following(url) as stream:
        await anext(stream)
        put(deps, *(batch(number) for number in range(changes.OBJECTS_MAX + 1)))
        assert (await anext(stream))[0] == "reset"
        big = {f"{n:02}": "\x01" * 512 for n in range(16)}
        put(deps, *(batch(number, metadata=big) for number in range(2_000, 2_100)))
        assert (await anext(stream))[0] == "reset"
        put(deps, batch(3_000))
        assert (await anext(stream))[2]["id"] == batch(3_000).id
    (found,) = deps.events._projects.values()
    assert len(found.objects) == changes.OBJECTS_MAX


async def test_a_stream_ends_with_its_key(deps, url, monkeypatch):
    """Within seconds of its revocation, also if nothing changes."""
    monkeypatch.setattr(events, "CHECK_SECONDS", 0.05)
    async with httpx.AsyncClient(
        base_url=url, headers={"authorization": f"Bearer {ADMIN}"}, timeout=WAIT_SECONDS_MAX
    ) as admin:
        made = (await admin.post("/admin/keys", json={"name": "n", "project": "p", "role": "read"})).json()
        async with following(url, made["secret"]) as stream:
            await anext(stream)
            await admin.delete(f"/admin/keys/{made['id']}")
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        again = await admin.get("/events", headers={"authorization": f"Bearer {made['secret']}"})
        assert again.status_code == 401
    await until(lambda: not deps.events.open_streams, "the end of the stream")


async def test_projects_share_the_streams_of_a_process(deps, url):
    """Whatever keys they have: a project may hold half of those that others leave; a closed one makes room."""
    headers = {"authorization": f"Bearer {ADMIN}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=WAIT_SECONDS_MAX) as admin:

        async def key_of(project: str) -> str:
            wish = {"name": "n", "project": project, "role": "read"}
            return (await admin.post("/admin/keys", json=wish)).json()["secret"]

        shares = {"key-of-p": 16, "key-of-q": 8, ADMIN: 4}
        shares |= {await key_of("r"): 2, await key_of("s"): 1, await key_of("t"): 1}
        late = await key_of("late")
    async with httpx.AsyncClient(
        base_url=url, headers={"authorization": "Bearer key-of-p"}, timeout=WAIT_SECONDS_MAX
    ) as client:
        async with contextlib.AsyncExitStack() as stack:
            for key, count in shares.items():
                for _ in range(count):
                    await stack.enter_async_context(following(url, key))
                for refused in (key, READER):
                    answer = await client.get("/events", headers={"authorization": f"Bearer {refused}"})
                    assert (answer.status_code, answer.headers["x-should-retry"]) == (429, "false")
                    assert "uses its whole share" in answer.text
            assert deps.events.open_streams.total() == 32
            answer = await client.get("/events", headers={"authorization": f"Bearer {late}"})
            assert (answer.status_code, answer.headers["x-should-retry"]) == (429, "false")
            said = "All streams of events of this server are taken; try again later."
            assert answer.json()["error"]["message"] == said
        await until(lambda: not deps.events.open_streams, "the end of all streams")
        assert (await client.head("/events")).status_code == 200
        await until(lambda: not deps.events.open_streams, "the end of the stream of a HEAD")
        async with following(url) as stream:
            assert (await anext(stream))[0] == "reset"
        assert (await client.get("/events?types=batch,secrets")).json()["error"]["code"] == "invalid_value"


async def test_a_process_that_stops_ends_its_streams(deps, url):
    """It does not wait for them."""
    async with following(url) as stream:
        await anext(stream)
        deps.events.close()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    await until(lambda: not deps.events.open_streams, "the end of the stream")
    assert not any(found.streams for found in deps.events._projects.values())


def test_the_feed_forgets_projects_without_streams():
    """It remembers some, for clients that come back."""
    feed = ChangeFeed()
    for number in range(changes.IDLE_PROJECTS_MAX + 10):
        feed.publish(str(number), "batch", "b")
        with feed.stream(str(number)):
            pass
    assert len(feed._projects) == changes.IDLE_PROJECTS_MAX


async def test_the_load_of_servers_reaches_those_who_ask(deps, url):
    """Others are not even woken by it, and it is not remembered for them."""
    report = ProcessReport(process="h:1", servers=(), models=())
    async with following(url, ADMIN, types="load,batch") as stream:
        assert (await anext(stream))[0] == "reset"
        deps.loads.apply("h:1", codec.encode(report), NOW)
        kind, _, data = await anext(stream)
        assert (kind, data["object"], data["processes"]) == ("load", "load", 1)
    async with following(url, ADMIN) as stream:
        _, number, _ = await anext(stream)
        deps.loads.apply("h:1", codec.encode(report), NOW)
        put(deps, batch(), project="default")
        kind, later, _ = await anext(stream)
        assert kind == "batch"
        assert int(later.split("-")[1]) == int(number.split("-")[1]) + 1
