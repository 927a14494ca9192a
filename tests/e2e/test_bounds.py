"""Requests at and beyond all bounds stop no stage of a running installation, and no neighbour's batch."""

import json

import httpx
import pytest
from openai import OpenAI
from openai.types import Batch
from support import corpus
from support.stack import KEY
from support.waiting import WAIT_SECONDS_MAX, until

from tidemill.configuration.settings import Settings

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]


def lines_of(count: int) -> bytes:
    """Lines for the model `chat`."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    return b"".join(json.dumps({"custom_id": f"{n}", **line}).encode() + b"\n" for n in range(count))


def batch_of(client: OpenAI, count: int, **fields: object) -> Batch:
    """A batch of so many lines."""
    file = client.files.create(file=("in.jsonl", lines_of(count)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **fields
    )


def key_of(stack, project: str) -> str:
    """A new key of a project."""
    body = {"name": project, "project": project, "role": "admin"}
    answer = httpx.post(
        f"{stack.api}/admin/keys", json=body, headers={"authorization": f"Bearer {KEY}"}, timeout=WAIT_SECONDS_MAX
    )
    return str(answer.raise_for_status().json()["secret"])


def http_client(stack, key: str) -> httpx.AsyncClient:
    """A client of the api with this key."""
    headers = {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=stack.api.removesuffix("/v1"), headers=headers, timeout=WAIT_SECONDS_MAX)


OF_OPERATORS = ("/v1/admin/servers", "/v1/admin/models", "/v1/admin/apply", "/v1/admin/dead_letters")
WORST = {f"{n:02}" + "\x01" * 62: "\x01" * 512 for n in range(16)}
"""Metadata that takes the most room in a record."""


@pytest.mark.usefixtures("backend")
async def test_requests_at_and_beyond_all_bounds(stack):
    """Each field of each route at its bound, above it and with a million, while a neighbour's batch runs.

    No answer is a 5xx, no process ends, and every accepted batch ends.
    """
    before = stack.ends()
    keys = {project: key_of(stack, project) for project in ("corpus", "neighbour")}
    neighbour = OpenAI(base_url=stack.api, api_key=keys["neighbour"])
    attacker = OpenAI(base_url=stack.api, api_key=keys["corpus"], max_retries=0)
    alone = batch_of(neighbour, 1_000)
    largest = batch_of(attacker, 10, metadata=WORST)
    await until(lambda: attacker.batches.retrieve(largest.id).status == "completed", "its end")
    upload = attacker.uploads.create(bytes=1, filename="f", mime_type="text/plain", purpose="batch")
    hook = attacker.post(
        "/webhook_endpoints",
        body={"name": "n", "url": "https://none.invalid/", "event_types": ["batch.expired"]},
        cast_to=object,
    )
    known = {
        "input_file_id": largest.input_file_id, "file_id": largest.output_file_id or largest.input_file_id,
        "batch_id": largest.id, "batch": largest.id, "with": largest.id,
        "upload_id": upload.id, "key_id": "key_none",
        "endpoint_id": hook["id"], "endpoint_path": "embeddings", "rerun_of": largest.id,
        "name": "none",
        "model": "chat", "endpoint": "/v1/chat/completions", "from": "0", "completion_window": "24h",
    }  # fmt: skip
    async with (
        http_client(stack, keys["corpus"]) as client,
        http_client(stack, KEY) as operator,
    ):
        description = (await client.get("/openapi.json")).json()
        upload_body = description["paths"]["/v1/uploads"]["post"]["requestBody"]["content"]["application/json"]
        # The installation bounds this one further.
        upload_body["schema"]["properties"]["bytes"]["maximum"] = Settings().assembled_bytes_max
        for field in corpus.fields(description):
            if field.operation.startswith("DELETE"):
                continue
            for cell in corpus.cells(field):
                method, path, options = corpus.build(description, known, field, cell.value, line=lines_of(1))
                sender = operator if path.startswith(OF_OPERATORS) else client
                corpus.check(await sender.request(method, path, **options), cell)
    beside = batch_of(neighbour, 100)
    for made in (alone, beside):
        await until(lambda made=made: neighbour.batches.retrieve(made.id).status == "completed", "the neighbour's")
    final = {"completed", "failed", "cancelled", "expired"}
    await until(
        lambda: {batch.status for batch in attacker.batches.list(limit=100)} <= final, "all that was taken"
    )
    assert stack.ends() == before, "no process ended over it"
