"""For one project, objects of another do not exist. Generated from the routes."""

import asyncio
import functools
import re

import httpx
import pytest
from support import dependencies
from support.trust import SIGNER

from tidemill.api import changes
from tidemill.api.app import create_app
from tidemill.api.openapi import describe
from tidemill.schemas import ids
from tidemill.schemas.log.messages import BatchRecord, Erasure, KeyRecord
from tidemill.schemas.resources import access
from tidemill.schemas.resources.batch import Batch

client_of = functools.partial(dependencies.client_of, base="http://api")

LINE = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"x"}}\n'
BATCH = {"endpoint": "/v1/embeddings", "completion_window": "24h"}
UPLOAD = {"filename": "f", "purpose": "batch", "bytes": len(LINE), "mime_type": "application/jsonl"}
UNKNOWN = {
    "batch_id": ids.new_batch_id(),
    "file_id": ids.new_file_id("p"),
    "upload_id": ids.new_upload_id(),
    "key_id": access.new_key_id(),
    "endpoint_id": ids.new_endpoint_id(),
}
HOOK = {"name": "n", "url": "https://example.com/", "event_types": ["batch.failed"]}
BODIES = {
    "/v1/batches/{batch_id}/requests": {
        "json": {"requests": [{"custom_id": "a", "body": {"model": "m", "input": "x"}}], "sequence": 1}
    },
    "/v1/batches/{batch_id}/seal": {"json": {"sequence": 1}},
    "/v1/batches/{batch_id}/compare": {"params": {"with": UNKNOWN["batch_id"]}},
    "/v1/webhook_endpoints/{endpoint_id}/test": {"json": {"event_type": "batch.failed"}},
    "/v1/uploads/{upload_id}/complete": {"json": {"part_ids": ["part_x"]}},
    "/v1/uploads/{upload_id}/parts": {"files": {"data": ("d", LINE)}},
}
"""Bodies that routes need before they look for the object."""


async def owned(deps) -> dict[str, str]:
    """One object of each kind of the project `p`: the name of the parameter, and the id."""
    async with client_of(deps, "key-of-p") as client:
        form = {"data": {"purpose": "batch"}, "files": {"file": ("f", LINE)}}
        file_id = (await client.post("/v1/files", **form)).json()["id"]
        batch = await client.post("/v1/batches", json=BATCH | {"input_file_id": file_id})
        upload = await client.post("/v1/uploads", json=UPLOAD)
        endpoint = await client.post("/v1/webhook_endpoints", json=HOOK)
    key = access.ApiKey(
        id=access.new_key_id(), name="n", project="p", role="read", hint="sk-ab…wxyz", created_at=1
    )
    deps.view.keyring.put(KeyRecord(key=key, sha256="0" * 64), SIGNER.kid)
    return {
        "file_id": file_id,
        "batch_id": batch.json()["id"],
        "upload_id": upload.json()["id"],
        "key_id": key.id,
        "endpoint_id": endpoint.json()["id"],
    }


def essence(answer: httpx.Response, object_id: str) -> tuple[int, str, list[str]]:
    """An answer without the requested id, and that of the request, which Anthropic's errors repeat."""
    text = answer.text.replace(object_id, "ID").replace(answer.headers["x-request-id"], "REQUEST")
    return answer.status_code, text, sorted(answer.headers)


async def test_ids_of_other_projects_in_paths(deps):
    """The answer is byte for byte the answer for an unknown id."""
    own = await owned(deps)
    paths = describe(create_app(deps))["paths"]
    routes = [
        (method, path, found[1])
        for path, methods in paths.items()
        for method in methods
        if (found := re.search(r"\{(\w+_id)\}", path))
    ]
    assert {name for _, _, name in routes} == set(own) == set(UNKNOWN), "a new kind of object needs a line above"
    assert len(routes) >= 14

    async def asked(client, method, path, name, object_id):
        path_asked = path.replace(f"{{{name}}}", object_id)
        return essence(await client.request(method, path_asked, **BODIES.get(path, {})), object_id)

    async with client_of(deps, "key-of-q") as client:
        answers = await asyncio.gather(
            *(asked(client, *route, ids[route[2]]) for route in routes for ids in (own, UNKNOWN))
        )
    for route, others, nobodys in zip(routes, answers[::2], answers[1::2], strict=True):
        assert others == nobodys, route
        assert others[0] == (403 if "/admin/" in route[1] else 404), (route, others)
    # And none of the requests had an effect.
    async with client_of(deps, "key-of-p") as client:
        assert (await client.get(f"/v1/files/{own['file_id']}/content")).content == LINE
        assert (await client.get(f"/v1/batches/{own['batch_id']}")).json()["status"] == "validating"


async def test_ids_of_other_projects_in_bodies_and_cursors(deps):
    """A file in a body, and the cursor of a list."""
    own = await owned(deps)
    async with client_of(deps, "key-of-q") as client:
        pairs = []
        for ids in (own, UNKNOWN):
            file_id = ids["file_id"]
            wish = {"input_file_id": file_id, "endpoint": "/v1/embeddings"}
            pairs.append(
                [
                    essence(await client.post("/v1/batches/estimate", json=wish), file_id),
                    essence(await client.get("/v1/files", params={"after": file_id}), file_id),
                    essence(await client.get("/v1/batches", params={"after": ids["batch_id"]}), ids["batch_id"]),
                ]
            )
            made = await client.post("/v1/batches", json=BATCH | {"input_file_id": file_id})
            assert (made.status_code, made.json()["status"]) == (200, "validating")
    assert pairs[0] == pairs[1]
    assert [status for status, _, _ in pairs[0]] == [404, 400, 400]


async def test_a_batch_of_another_projects_file_shows_nothing_of_it(tmp_path):
    """Every route answers as for a batch of an unknown file, byte for byte, also after the file's deletion."""
    seen = []
    for name in ("own", "unknown"):
        async with dependencies.open_dependencies(tmp_path / name) as deps:
            own = await owned(deps)
            file_id = own["file_id"] if name == "own" else UNKNOWN["file_id"]
            async with client_of(deps, "key-of-q") as client, client_of(deps, "key-of-p") as owner:
                wish = BATCH | {"input_file_id": file_id}
                made = await client.post("/v1/batches", json=wish, headers={"idempotency-key": "k"})
                batch = Batch.model_validate(made.json())
                deps.view.put_batch(BatchRecord(project="q", batch=batch))
                named = UNKNOWN | {"file_id": file_id, "batch_id": batch.id}
                shown = [await everything(client, named)]
                await owner.delete(f"/v1/files/{own['file_id']}")
                deps.view.put_batch(BatchRecord(project="q", batch=batch))
                shown.append(await everything(client, named))
            seen.append(shown)
    assert min(map(len, seen[0])) > 20
    assert seen[0] == seen[1]


async def everything(client: httpx.AsyncClient, named: dict[str, str]) -> dict[str, object]:
    """The answers of all routes that read, but the stream of events, about these ids."""
    app = client._transport.app
    paths = [path for path, methods in describe(app)["paths"].items() if "get" in methods and path != "/v1/events"]

    async def asked(path: str) -> object:
        url = re.sub(r"\{(\w+)\}", lambda found: named.get(found[1], "x"), path)
        params = BODIES.get(path, {}).get("params")
        return essence(await client.get(url, params=params), named["file_id"])

    return dict(zip(paths, await asyncio.gather(*map(asked, paths)), strict=True))


@pytest.mark.parametrize("path", ["/v1/batches/{}", "/v1/messages/batches/{}"])
async def test_a_deleted_batch_of_another_project_takes_as_long_as_an_unknown_one(deps, monkeypatch, path):
    """The time of the answer shows nothing: as many waits, for as long."""
    waits = []

    async def wait_for(_, __, look, *, seconds_max):
        waits.append(seconds_max)
        return look()

    monkeypatch.setattr(changes.ChangeEvent, "wait_for", wait_for)
    deleted = ids.new_batch_id()
    deps.view.erasures.put(deleted, Erasure(project="p", at=1))
    counts = []
    async with client_of(deps, "key-of-q") as client:
        for batch_id in (deleted, UNKNOWN["batch_id"]):
            for method in ("GET", "DELETE", "POST"):
                if method == "POST":
                    answer = await client.post(f"{path.format(batch_id)}/cancel")
                else:
                    answer = await client.request(method, path.format(batch_id))
                assert answer.status_code == 404
            counts.append(tuple(waits))
            waits.clear()
    assert counts[0] == counts[1]
    assert counts[0]
