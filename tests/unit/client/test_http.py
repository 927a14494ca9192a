"""Requests, uploads and downloads of the client, over real HTTP against a stand-in of the service."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from support.service import KEY, Service, receipt_of, request_lines

from tidemill.client.errors import OtherService, Refused, Unreachable, next_step
from tidemill.client.http import client as routes
from tidemill.client.http import connection as module
from tidemill.client.http.client import Client
from tidemill.client.http.transfers import download, upload


@asynccontextmanager
async def answering(status: int, body: bytes) -> AsyncIterator[tuple[Client, list[str]]]:
    """A client of a service that answers every request alike, and the paths of these requests."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        await request.read()
        return web.Response(status=status, body=body)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server, Client(str(server.make_url("/v1")), KEY) as client:
        yield client, asked


def names(folder: Path) -> list[str]:
    """What a folder holds."""
    return [path.name for path in folder.iterdir()]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries are short."""
    monkeypatch.setattr(module, "PAUSE_SECONDS_MAX", 0.01)


async def test_an_upload_sends_the_file_unchanged(service: Service, client: Client, tmp_path: Path) -> None:
    """And reports the bytes as they go."""
    source = tmp_path / 'ünï "quoted".jsonl'
    source.write_bytes(request_lines(20_000))
    moved: list[int] = []
    assert await upload(client, source, moved.append) == "file-in"
    assert service.files["file-in"] == source.read_bytes()
    assert sum(moved) == source.stat().st_size
    assert len(moved) > 1


async def test_a_service_without_tls_is_named(service: Service) -> None:
    """In plain words, without the error number of the system."""
    url = service.url.replace("http:", "https:")
    async with Client(url, KEY) as client:
        with pytest.raises(Unreachable, match=f"{url} does not speak TLS"):
            await client.batch("batch_1")


async def test_create_sends_endpoint_window_and_metadata(service: Service, client: Client) -> None:
    """And returns the batch."""
    batch = await client.create("file-in", "/v1/embeddings", "24h", metadata={"team": "a"}, key="k")
    assert batch.status == "validating"
    assert service.created == [
        {
            "input_file_id": "file-in",
            "endpoint": "/v1/embeddings",
            "completion_window": "24h",
            "metadata": {"team": "a"},
        }
    ]


@pytest.mark.usefixtures("impatient")
async def test_create_is_repeated_after_a_lost_answer(service: Service, client: Client) -> None:
    """Under the same idempotency key."""
    await client.batch("batch_1")
    service.lost = 2
    assert (
        await client.create("file-in", "/v1/embeddings", "24h", metadata={"team": "a"}, key="k")
    ).id == "batch_1"
    assert len(service.created) == 3
    assert len(service.keys) == 1


async def test_a_refused_request_is_not_repeated(service: Service) -> None:
    """The error has the message of the service."""
    async with Client(service.url, "wrong") as client:
        with pytest.raises(Refused, match="Incorrect API key") as caught:
            await client.create("file-in", "/v1/embeddings", "24h", metadata={"team": "a"}, key="k")
    assert caught.value.status == 401


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (
            400,
            {"error": {"message": "Not '1h'.", "type": "t", "param": "window", "code": "c"}},
            r"Not '1h'\. \(window\)$",
        ),
        (
            400,
            {"error": {"message": "Bad 'window'.", "type": "t", "param": "window", "code": "c"}},
            "Bad 'window'.$",
        ),
        (402, {"message": "no consumer"}, r"no consumer \(/v1/batches\)$"),
        (422, {"detail": [{"msg": "field required"}]}, r"field required \(/v1/batches\)$"),
        (402, ["no"], r"Payment Required \(/v1/batches\)$"),
    ],
)
async def test_a_refusal_names_its_field(status: int, body: Any, said: str) -> None:
    """Unless the message has it; that of a gateway has its own words."""
    async with answering(status, orjson.dumps(body)) as (client, _):
        with pytest.raises(Refused, match=said) as caught:
            await client.create("file-in", "/v1/embeddings", "1h", metadata={}, key="k")
    assert next_step(caught.value) is None


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, b'{"detail": "Not Found"}', "404 at /v1/batches"),
        (405, b'{"detail": "Method Not Allowed"}', "405 at /v1/batches"),
        (200, b"<!doctype html>", "200 at /v1/batches, without a JSON object"),
        (200, b"[]", "200 at /v1/batches, without a JSON object"),
        (200, b"\xff", "200 at /v1/batches, without a JSON object"),
        (200, b"", "200 at /v1/batches, without a JSON object"),
    ],
)
async def test_another_service_is_named_at_once(status: int, body: bytes, said: str) -> None:
    """An inference server has no batches, and a web page is no answer of the service, however often it comes."""
    async with answering(status, body) as (client, asked):
        with pytest.raises(OtherService, match=f"does not speak the Batch API: {said}$") as caught:
            await client.create("file-in", "/v1/embeddings", "1h", metadata={}, key="k")
    assert asked == ["/v1/batches"]
    assert caught.value.may_have_happened is (status == 200)
    assert "--base-url" in str(next_step(caught.value))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [200, 404])
async def test_a_proxy_that_answers_in_between_is_waited_for(
    service: Service, client: Client, status: int
) -> None:
    """Within the bound of other faults, once the service has answered the request: it is there."""
    service.down_status, service.down_body = status, "<h1>Back soon</h1>"
    await client.batch("batch_1")
    service.down = module.TRIES_MAX - 1
    assert (await client.batch("batch_1")).status == "completed"
    service.down = 1_000
    with pytest.raises(Unreachable, match=f"the service is unavailable: {status} at /v1/batches/batch_1"):
        await client.batch("batch_1")
    assert service.down == 1_000 - module.TRIES_MAX


async def test_another_service_may_take_a_file(tmp_path: Path) -> None:
    """But it gives none of ours."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(request_lines(1))
    async with answering(200, b'{"ok": true}') as (client, asked):
        with pytest.raises(OtherService, match="/files gave no id of a file"):
            await client.retrying(lambda: upload(client, source, lambda _: None))
    assert asked == ["/v1/files"]


@pytest.mark.usefixtures("impatient")
async def test_an_answer_that_broke_off_is_asked_for_again() -> None:
    """Its length is not always known."""
    async with answering(200, b'{"id": "batch_1", "obj') as (client, asked):
        with pytest.raises(Unreachable, match="broke off"):
            await client.batch("batch_1")
    assert len(asked) == module.TRIES_MAX


async def test_a_link_to_a_bucket_that_has_lost_its_object_is_no_wrong_service(tmp_path: Path) -> None:
    """The service has sent the link."""

    async def link(_: web.Request) -> web.Response:
        raise web.HTTPFound("/bucket/object")

    async def lost(_: web.Request) -> web.Response:
        return web.Response(status=404, text="<Error/>")

    app = web.Application()
    app.router.add_get("/v1/files/file-1/content", link)
    app.router.add_get("/bucket/object", lost)
    async with TestServer(app) as server, Client(str(server.make_url("/v1")), KEY) as client:
        with pytest.raises(Refused, match="Not Found") as caught:
            await download(client, "file-1", tmp_path / "out", lambda _: None)
    assert "--base-url" not in str(next_step(caught.value))


async def test_pages_are_read_up_to_the_limit(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest batches come first."""
    monkeypatch.setattr(routes, "PAGE_LINES_MAX", 2)
    assert [batch.id async for batch in client.batches(limit=5)] == [f"batch_{n}" for n in range(5)]
    assert len([batch async for batch in client.batches(limit=50)]) == 7


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("ranges", [True, False])
async def test_a_broken_download_resumes(service: Service, client: Client, tmp_path: Path, ranges: bool) -> None:
    """With ranges where it stopped, without them from the start."""
    content = request_lines(50)
    service.files["file-out"] = content
    service.breaks, service.ranges = 2, ranges
    target = tmp_path / "out.jsonl"
    moved: list[int] = []
    receipt = await download(client, "file-out", target, moved.append)
    assert target.read_bytes() == content
    assert receipt.model_dump() == receipt_of(content)
    assert sum(moved) == len(content)
    assert names(tmp_path) == [target.name]


@pytest.mark.usefixtures("impatient")
async def test_a_failing_download_leaves_the_old_file(service: Service, client: Client, tmp_path: Path) -> None:
    """After a bounded number of attempts."""
    service.files["file-out"] = request_lines(50)
    service.breaks, service.break_bytes = 1000, 0
    target = tmp_path / "out.jsonl"
    target.write_text("before")
    with pytest.raises(Unreachable):
        await download(client, "file-out", target, lambda _: None)
    assert service.breaks == 1000 - module.TRIES_MAX
    assert target.read_text() == "before"
    assert names(tmp_path) == [target.name]


@pytest.mark.usefixtures("impatient")
async def test_a_read_waits_while_the_service_restarts(service: Service, client: Client) -> None:
    """It repeats after 5xx answers."""
    service.down = 3
    assert (await client.batch("batch_1")).status == "completed"


@pytest.mark.usefixtures("impatient")
async def test_a_429_with_retry_after_is_repeated(service: Service, client: Client) -> None:
    """One without it means a used-up quota, and ends the request."""
    service.down, service.down_status, service.down_headers = 3, 429, {"retry-after": "1"}
    assert (await client.batch("batch_1")).status == "completed"
    service.down, service.down_headers = 3, {"x-should-retry": "false"}
    with pytest.raises(Refused) as caught:
        await client.batch("batch_1")
    assert (caught.value.status, service.down) == (429, 2)


async def test_a_wrong_address_fails_at_once() -> None:
    """Without retries."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with Client(f"http://127.0.0.1:{port}/v1", KEY) as client:
        with pytest.raises(Unreachable, match=str(port)):
            await client.batch("batch_1")


async def test_limits_of_another_api_are_refused(service: Service, client: Client) -> None:
    """A service without the route has OpenAI's limits; one that answers something else is named in the error."""
    assert await client.limits() == routes.Bounds()
    service.limits = {"file_lines_max": 7, "file_bytes_max": 1 << 20}
    assert await client.limits() == routes.Bounds(lines_max=7, bytes_max=1 << 20)
    service.limits = {"file_lines_max": "many"}
    with pytest.raises(OtherService, match="does not speak the Batch API"):
        await client.limits()
