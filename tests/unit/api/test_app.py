"""The app without a broker: faults of its dependencies, and separation of projects."""

import shutil
from dataclasses import replace
from typing import Annotated

import httpx
import pytest
from chaos import disk
from fastapi import Depends, Request, Response
from support.dependencies import client_of
from support.trust import SIGNER

from tidemill.api import app
from tidemill.api.openapi import Route
from tidemill.configuration.settings import Settings
from tidemill.runtime.heartbeat import Heartbeat
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import BatchCreated
from tidemill.schemas.log.part import file_key
from tidemill.telemetry import logs

LINE = b'{"custom_id":"a"}\n'


async def upload(client: httpx.AsyncClient) -> httpx.Response:
    """A small file."""
    return await client.post("/files", data={"purpose": "batch"}, files={"file": ("f", LINE)})


def is_refused(answer: httpx.Response) -> bool:
    """Whether it is a 503 in OpenAI's shape, with a time to wait."""
    assert answer.json()["error"]["type"] == "server_error"
    return answer.status_code == 503 and int(answer.headers["retry-after"]) > 0


async def test_an_unexpected_exception_is_a_500_and_logged_without_its_text(deps, caplog):
    """The answer has the request's id, under which the log has the stack."""
    text = "nee" + "dle"

    def fail() -> bool:
        raise ValueError(text)

    caplog.handler.setFormatter(logs.Json("api"))
    async with client_of(replace(deps, reading=replace(deps.reading, is_ready=fail)), "key-of-p") as client:
        answer = await client.get("/files")
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert answer.headers["x-request-id"] in caplog.text
    assert "ValueError" in caplog.text
    assert text not in caplog.text


async def test_a_start_that_fails_ends_the_process(tmp_path, monkeypatch, caplog):
    """Else it would never be ready, and nothing would say why."""

    async def fail(*_):
        raise RuntimeError("start")

    settings = Settings(
        data=tmp_path, kafka="127.0.0.1:9", port=0, api_key_sha256="ab" * 32, signing_key=SIGNER.text
    )
    monkeypatch.setattr(app, "_finish_start", fail)
    assert await app.serve(settings, Heartbeat())
    assert "the api crashed" in caplog.text


async def test_reads_get_a_503_until_the_view_has_caught_up(deps):
    """It could answer that objects do not exist."""
    async with client_of(
        replace(deps, reading=replace(deps.reading, is_ready=lambda: False)), "key-of-p"
    ) as client:
        assert is_refused(await client.get("/files"))
        assert is_refused(await client.get("http://api/readyz"))
        assert (await client.get("http://api/livez")).status_code == 200


async def test_without_the_log_nothing_changes(deps, client):
    """Uploads, creates, cancels and deletes fail, and have no visible effect."""
    file_id = (await upload(client)).json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch = (await client.post("/batches", json=body)).json()
    deps.log.away = True
    assert is_refused(await upload(client))
    assert is_refused(await client.post("/batches", json=body))
    assert is_refused(await client.post(f"/batches/{batch['id']}/cancel"))
    assert is_refused(await client.delete(f"/files/{file_id}"))
    assert [file["id"] for file in (await client.get("/files")).json()["data"]] == [file_id]
    assert (await client.get("/batches")).json()["data"] == [batch]


async def test_without_the_store_files_cannot_be_read_or_written(tmp_path, client):
    """503 if it fails, 500 if the bytes are missing."""
    file_id = (await upload(client)).json()["id"]
    path = f"/files/{file_id}/content"
    stored = tmp_path / "store" / file_key(file_id)
    stored.unlink()
    assert (await client.get(path)).status_code == 500
    stored.symlink_to(stored)
    assert is_refused(await client.get(path))
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_bytes(b"no folder")
    assert is_refused(await upload(client))


async def test_a_full_store_refuses_uploads_and_keeps_nothing_of_them(tmp_path, client):
    """Files can still be read and deleted; once there is room, uploads work again."""
    if disk.missing():
        # A test cannot mount a small disk; test_errors.py checks the text.
        return
    store = tmp_path / "store"
    kept = tmp_path / "kept"
    with disk.Disk(store, kept=kept) as mounted:
        (store / ".partial").mkdir()
        file_id = (await upload(client)).json()["id"]
        mounted.fill()
        answer = await upload(client)
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
        assert int(answer.headers["retry-after"]) > 0
        assert (await client.get(f"/files/{file_id}/content")).content == LINE
        assert [file["id"] for file in (await client.get("/files")).json()["data"]] == [file_id]
        mounted.empty()
        assert (await upload(client)).status_code == 200
    assert list((kept / ".partial").iterdir()) == []


async def test_a_command_has_the_key_of_the_input(deps, client):
    """For ingest; a file of another project does not exist."""
    file_id = (await upload(client)).json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    async with client_of(deps, "key-of-q") as other:
        for caller, project in ((client, "p"), (other, "q")):
            made = (await caller.post("/batches", json=body)).json()
            command = codec.decode_command(deps.log.records[-1][2])
            assert isinstance(command, BatchCreated)
            assert (command.project, command.batch.id) == (project, made["id"])
            assert (command.input and command.input.key) == (file_key(file_id) if project == "p" else None)


async def test_answers_forbid_caching_and_content_sniffing(tmp_path, client):
    """Lists, files and errors; files of the dashboard may be cached and revalidated."""
    file_id = (await upload(client)).json()["id"]
    etag = (await client.get(f"/files/{file_id}/content")).headers["etag"]
    statuses = []
    for method, path, headers in (
        ("GET", "/files", {}),
        ("GET", f"/files/{file_id}/content", {}),
        ("GET", f"/files/{file_id}/content", {"range": "bytes=0-1"}),
        ("GET", f"/files/{file_id}/content", {"if-none-match": etag}),
        ("GET", f"/files/{file_id}/content", {"range": "bytes=999-"}),
        ("GET", "/files?limit=x", {}),
        ("GET", "/files", {"authorization": "Bearer none"}),
        ("GET", "/nothing", {}),
        ("PUT", "/files", {}),
        ("GET", "http://api/livez", {}),
        ("GET", "http://api/openapi.json", {}),
    ):
        answer = await client.request(method, path, headers=headers)
        statuses.append(answer.status_code)
        assert (path, answer.headers["cache-control"]) == (path, "no-store")
        assert (path, answer.headers["x-content-type-options"]) == (path, "nosniff")
    assert statuses == [200, 200, 206, 304, 416, 400, 401, 404, 405, 200, 200]
    (tmp_path / "store").rename(tmp_path / "gone")
    broken = await client.get(f"/files/{file_id}/content")
    assert (broken.status_code, broken.headers["cache-control"]) == (500, "no-store")
    page = await client.get("http://api/dashboard/")
    assert (page.headers["cache-control"], page.headers["x-content-type-options"]) == ("no-cache", "nosniff")


async def test_a_project_sees_nothing_of_another(deps, client):
    """Neither files nor batches, on any route."""
    file_id = (await upload(client)).json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch_id = (await client.post("/batches", json=body)).json()["id"]
    async with client_of(deps, "key-of-q") as other:
        for path in (f"/files/{file_id}", f"/files/{file_id}/content", f"/batches/{batch_id}"):
            assert (await other.get(path)).status_code == 404
        assert (await other.delete(f"/files/{file_id}")).status_code == 404
        assert (await other.post(f"/batches/{batch_id}/cancel")).status_code == 404
        for path in ("/files", "/batches"):
            assert (await other.get(path)).json()["data"] == []
    assert (await client.get(f"/files/{file_id}/content")).content == LINE


async def test_a_route_calls_its_dependencies_in_their_order():
    """Each gets the request; after one that fails, the next ones and the endpoint are not called."""
    called = []

    async def first(request: Request) -> str:
        called.append("first")
        return request.query_params["name"]

    async def second(request: Request) -> str:
        called.append("second")
        raise LookupError(request.method)

    async def greet(request: Request, name: Annotated[str, Depends(first)]) -> Response:
        """Greet."""
        return Response(f"{request.method} {name}")

    async def fail(name: Annotated[str, Depends(first)], other: Annotated[str, Depends(second)]) -> Response:
        """Fail."""
        raise AssertionError((name, other))

    request = Request({"type": "http", "method": "GET", "query_string": b"name=me", "headers": []})
    assert (await Route("/greet", greet).get_route_handler()(request)).body == b"GET me"
    with pytest.raises(LookupError):
        await Route("/fail", fail).get_route_handler()(request)
    assert called == ["first", "first", "second"]


def test_a_parameter_of_a_route_is_a_dependency():
    """FastAPI would read others from the query or the body; here no dependency would give them."""

    async def limited(limit: int) -> Response:
        """List."""
        return Response(str(limit))

    with pytest.raises(TypeError, match="limit is not a dependency"):
        Route("/limited", limited)
