"""Middleware: request ids, `HEAD`, paths and keys of Azure's clients, CORS, and log lines of refused requests."""

import json
import logging
import re
from dataclasses import replace

import httpx
import orjson
import pytest
from support.dependencies import NOW, client_of, with_settings

from tidemill.api.openapi import describe
from tidemill.configuration.connections import Logs
from tidemill.configuration.settings import Settings
from tidemill.schemas import ids
from tidemill.schemas.ports import READ_BYTES
from tidemill.telemetry import log_dedup, logs

LINE = b'{"custom_id":"a"}\n'
LARGE = LINE * 10_000
ORIGIN = "https://app.example.com"
BATCH = ids.new_batch_id()


def ask(deps, **settings) -> httpx.AsyncClient:
    """A client of an app that has these settings."""
    headers = {"accept-encoding": "identity"}
    return client_of(with_settings(deps, Settings(**settings)), base="http://api", **headers)


async def upload(client: httpx.AsyncClient, content: bytes = LINE, **fields: str) -> httpx.Response:
    """The answer to an upload."""
    return await client.post("/v1/files", data={"purpose": "batch", **fields}, files={"file": ("f", content)})


async def test_head_is_a_get_without_its_body(deps):
    """The same status and headers."""
    async with ask(deps) as client:
        file_id = (await upload(client, LARGE)).json()["id"]
        given = ("/v1/files", f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", "/v1/models", "/livez")
        routes = [
            path for path, operations in describe(client._transport.app)["paths"].items() if "get" in operations
        ]
        # An id of no object; a stream of events does not end.
        others = [re.sub("{.*?}", "none", path) for path in routes if path != "/v1/events"]
        for path in (*given, *others):
            got, head = await client.get(path), await client.head(path)
            assert (head.status_code, head.content) == (200 if path in given else got.status_code, b""), path
            differing = {name for name, _ in set(head.headers.items()) ^ set(got.headers.items())}
            assert not {name for name in differing if not re.search("^date$|request-id|ratelimit", name)}, path
        for wanted in ("bytes=0-9", f"bytes={len(LARGE) + 1}-"):
            whole = await client.head(f"/v1/files/{file_id}/content", headers={"range": wanted})
            assert (whole.status_code, whole.headers["content-length"]) == (200, str(len(LARGE)))
        missing = await client.head("/v1/files/file-none")
        assert (missing.status_code, missing.content) == (404, b"")
        assert (await client.head("/v1/files", headers={"authorization": ""})).status_code == 401


async def test_head_leads_to_no_link_for_get(deps):
    """The store refuses another method than the signed one."""

    class Linking:
        def __getattr__(self, name):
            return getattr(deps.store, name)

        async def link(self, key, disposition):
            del disposition
            return f"https://store/{key}"

    async with ask(replace(deps, store=Linking()), presigned_downloads=True, store="s3://bucket") as client:
        path = f"/v1/files/{(await upload(client)).json()['id']}/content"
        assert (await client.get(path)).status_code == 302
        head = await client.head(path)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(LINE)))


async def test_head_reads_one_chunk_of_a_file(deps):
    """Of a file with five."""
    read = []

    class Counting:
        def __getattr__(self, name):
            return getattr(deps.store, name)

        async def read(self, *args):
            async for chunk in deps.store.read(*args):
                read.append(len(chunk))
                yield chunk

    async with ask(replace(deps, store=Counting())) as client:
        file_id = (await upload(client, LINE * (5 * READ_BYTES // len(LINE)))).json()["id"]
        await client.head(f"/v1/files/{file_id}/content")
    assert sum(read) <= 2 * READ_BYTES


async def test_clients_may_set_the_request_id(deps, caplog):
    """The answer, the log and the audit trail have it; an invalid one is replaced."""
    caplog.set_level(logging.INFO, "tidemill")
    caplog.handler.setFormatter(logs.Json("api"))
    async with ask(deps) as client:
        file_id = (await upload(client)).json()["id"]
        named = await client.delete(f"/v1/files/{file_id}", headers={"x-request-id": "job-7_a"})
        assert named.headers["x-request-id"] == "job-7_a"
        assert orjson.loads(deps.log.trail[-1])["request_id"] == "job-7_a"
        lost = await client.get(f"/v1/files/{file_id}", headers={"x-request-id": "job-8"})
        assert lost.headers["x-request-id"] == "job-8"
        (line,) = map(json.loads, caplog.handler.stream.getvalue().splitlines())
        assert line["message"] == "404 for GET /v1/files/{file_id}"
        assert (line["request_id"], line["project"], line["key_id"]) == ("job-8", "p", "key-of-p")
        for odd in ("", "a b", "x" * 65, "a\tb", "ä", "a,b"):
            answer = await client.get("/v1/models", headers={"x-request-id": odd.encode()})
            assert answer.headers["x-request-id"].startswith("req_")


async def test_refused_requests_are_logged_and_thinned(deps, caplog):
    """One line for each, with OpenAI's code and without text of the user; of a flood only some."""
    caplog.set_level(logging.INFO, "tidemill")
    split = log_dedup.LogDedup()
    async with ask(deps) as client:
        await client.get("/v1/files?after=secret%0Aforged&limit=x")
        (line,) = [record for record in caplog.records if record.name == "tidemill.api.middleware"]
        assert line.getMessage() == "400 invalid_type for GET /v1/files"
        assert line.levelno == logging.INFO
        await client.get("/v1/files/%0Aforged")
        await client.get("/forged")
        assert not [record for record in caplog.records if "forged" in record.getMessage()]
        caplog.clear()
        for _ in range(100):
            await client.get("/v1/none")
        assert sum(split.filter(record) for record in caplog.records) == log_dedup.LINES_MAX
        caplog.clear()
        await client.get("/v1/models")
        assert caplog.records == []


async def test_the_key_in_the_header_of_azure_clients(deps):
    """It counts only without an `Authorization` header."""
    async with ask(deps) as client:
        del client.headers["authorization"]
        assert (await client.get("/v1/models", headers={"api-key": "key-of-p"})).status_code == 200
        assert (await client.get("/v1/models", headers={"api-key": "no"})).status_code == 401
        both = {"api-key": "key-of-p", "authorization": "Bearer no"}
        assert (await client.get("/v1/models", headers=both)).status_code == 401


@pytest.mark.parametrize("prefix", ["/openai/v1", "/openai", "/openai/deployments/my-model"])
async def test_azure_paths_need_a_setting(deps, prefix):
    """Without it they do not exist."""
    async with ask(deps, path_aliases=True) as client:
        file_id = (await upload(client)).json()["id"]
        answer = await client.get(f"{prefix}/files/{file_id}?api-version=2024-10-21")
        assert (answer.status_code, answer.json()["id"]) == (200, file_id)
        assert (await client.get(f"{prefix}/v1/v1/files")).status_code == 404
        assert (await client.get("/openaiv1/files")).status_code == 404
        named = await client.get(f"{prefix}/models/openai/gpt-oss")
        assert named.json()["error"]["message"].startswith("The model 'openai/gpt-oss'")
        named = await client.get("/v1/models/openai/gpt-oss")
        assert named.json()["error"]["message"].startswith("The model 'openai/gpt-oss'")
    async with ask(deps) as client:
        assert (await client.get(f"{prefix}/files/{file_id}")).status_code == 404


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/batches", ". The address of the API ends in /v1."),
        ("/messages/batches/batch_1/results", ". The address of the API ends in /v1."),
        ("/v1/v1/messages/batches", ". The address has /v1 twice: some clients add it themselves."),
        ("/openai/batches", ". The operator can serve Azure's paths with the setting 'path_aliases'."),
        ("/openai/v1/files", ". The operator can serve Azure's paths with the setting 'path_aliases'."),
        ("/openai/nothing", ""),
        ("/v1/v1/nothing", ""),
        ("/nothing", ""),
    ],
)
async def test_a_wrong_address_gets_a_hint(deps, path, hint):
    """If another one leads to a route."""
    async with ask(deps) as client:
        answer = await client.get(path)
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, f"Invalid URL (GET {path}){hint}")


async def test_pages_of_other_origins_need_a_setting(deps):
    """Without it browsers show them nothing; with it they may send a key and read the exposed headers."""
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "api-key",
    }
    async with ask(deps) as client:
        for answer in (await client.options("/v1/files", headers=asked), await client.get("/v1/models")):
            assert not [name for name in answer.headers if name.startswith("access-control")]
    async with ask(deps, cors_origins=(ORIGIN,)) as client:
        preflight = await client.options("/v1/files", headers=asked | {"authorization": ""})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert preflight.headers["access-control-allow-headers"] == "api-key"
        assert preflight.headers["x-request-id"]
        for status, path in ((200, "/v1/models"), (404, "/v1/files/file-none")):
            answer = await client.get(path, headers={"origin": ORIGIN})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, ORIGIN)
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
        deps.view.file = None
        fault = await client.get("/v1/files/file-none", headers={"origin": ORIGIN})
        assert (fault.status_code, fault.headers["access-control-allow-origin"]) == (500, ORIGIN)
        assert fault.headers["x-request-id"]
        refused = await client.options("/v1/files", headers=asked | {"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in refused.headers


def life(seconds: object = 3600, **more: object) -> str:
    """`expires_after` as JSON."""
    return json.dumps({"anchor": "created_at", "seconds": seconds, **more})


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"expires_after": '{"seconds":3600}'}, "expires_after.anchor", "missing_required_parameter"),
        ({"expires_after": life(1)}, "expires_after.seconds", "integer_below_min_value"),
        ({"expires_after": life("3600")}, "expires_after.seconds", "invalid_type"),
        ({"expires_after": "3600"}, "expires_after", "invalid_type"),
        ({"expires_after": "{"}, "expires_after", "invalid_type"),
        ({"expires_after": life(more="x" * 512)}, "expires_after", "string_above_max_length"),
        (
            {"expires_after": life(), "expires_after[seconds]": "7200", "expires_after[anchor]": "created_at"},
            "expires_after", "invalid_value",
        ),
    ],
)  # fmt: skip
async def test_expires_after_as_a_json_object(deps, fields, param, code):
    """Beside the two fields with brackets that OpenAI's SDKs send; an error names the field."""
    async with ask(deps) as client:
        assert (await upload(client, expires_after=life())).json()["expires_at"] == NOW + 3600
        answer = await upload(client, **fields)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


async def test_an_access_log_has_each_request(deps, caplog):
    """Its route, status, time, size, project and ids; a flood too, and never the query or the id of a file."""
    caplog.set_level(logging.INFO, "tidemill")
    caplog.handler.setFormatter(logs.Json("api"))
    split = log_dedup.LogDedup()
    async with ask(deps, log=Logs(access=True)) as client:
        for _ in range(2 * log_dedup.LINES_MAX):
            await client.get("/v1/files?after=secret", headers={"x-request-id": "job-1"})
        assert all(split.filter(record) for record in caplog.records)
        size = len((await client.get("/v1/models?after=secret")).content)
        lost = await client.get(f"/v1/batches/{BATCH}")
        await client.request("SECRET", "/v1/files/secret")
    *_, first, second, third = map(json.loads, caplog.handler.stream.getvalue().splitlines())
    assert "secret" not in caplog.handler.stream.getvalue().lower()
    assert (first["message"], first["status"], first["bytes"]) == ("200 for GET /v1/models", 200, size)
    assert (first["project"], first["duration_ms"] > 0, first["logger"]) == ("p", True, log_dedup.ACCESS)
    assert (second["batch_id"], second["request_id"]) == (BATCH, lost.headers["x-request-id"])
    assert (third["method"], third["status"]) == ("other", 405)
