# ruff: noqa: T201 - what it prints is read when it fails

"""The use of the official Python SDK, from upload to deletion; run with each version of it.

`python scenario.py BASE_URL KEY FOLDER`: exits with 0 if every step succeeds, and prints the steps. It
imports nothing but the SDK, since it runs in environments that hold nothing else.
"""

import asyncio
import hashlib
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI

ENDED = ("completed", "failed", "expired", "cancelled")
BATCH_SECONDS_MAX = 900
POLL_SECONDS = 0.2
FILES_MAX = 1000
MESSAGES = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "chat", "messages": MESSAGES},
    "/v1/completions": {"model": "chat", "prompt": "hello"},
    "/v1/embeddings": {"model": "embed", "input": ["hello", "you"]},
    "/v1/responses": {"model": "chat", "input": "hello"},
}


def lines(endpoint: str, *ids: str, **body: Any) -> bytes:
    """An input with one request for each id."""
    requests = [
        {"custom_id": name, "method": "POST", "url": endpoint, "body": {**BODIES[endpoint], "user": name, **body}}
        for name in ids
    ]
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests)


def ended(client: OpenAI, batch_id: str) -> Any:
    """Poll a batch until it has ended."""
    give_up = time.monotonic() + BATCH_SECONDS_MAX
    while time.monotonic() < give_up:
        batch = client.batches.retrieve(batch_id)
        if batch.status in ENDED:
            return batch
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"{batch_id} has not ended: {batch}")


def running(client: OpenAI, batch_id: str) -> None:
    """Wait until ingest has published a batch's lines: a batch cancelled before that has no files."""
    give_up = time.monotonic() + BATCH_SECONDS_MAX
    while client.batches.retrieve(batch_id).status == "validating":
        assert time.monotonic() < give_up, batch_id
        time.sleep(POLL_SECONDS)


def started(client: OpenAI, content: bytes, endpoint: str = "/v1/chat/completions", **options: Any) -> Any:
    """Upload an input and make a batch of it."""
    file = client.files.create(file=content, purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **options)


def refused(kind: type[openai.APIStatusError], call: Any, *args: Any, **options: Any) -> openai.APIStatusError:
    """Make a call that must be refused with a kind of error."""
    try:
        answer = call(*args, **options)
    except kind as error:
        refusal = error
    else:
        raise AssertionError(f"it was not refused: {answer}")
    assert refusal.request_id, refusal
    return refusal


def uploads(client: OpenAI, folder: Path) -> None:
    """Bytes, a path, a stream and a named pair can all be uploaded."""
    content = lines("/v1/embeddings", "a")
    path = folder / "named.jsonl"
    path.write_bytes(content)
    ways: dict[str, Any] = {
        "upload": content,
        "named.jsonl": path,
        "pair.txt": ("pair.txt", io.BytesIO(content)),
    }
    for name, way in ways.items():
        file = client.files.create(file=way, purpose="batch")
        assert (file.filename, file.bytes, file.purpose, file.object) == (name, len(content), "batch", "file")
        assert client.files.wait_for_processing(file.id).status == "processed"
        assert client.files.content(file.id).read() == content
        assert file._request_id
    expiring = client.files.create(
        file=content, purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert expiring.expires_at == expiring.created_at + 3600


def parts(client: OpenAI, folder: Path) -> None:
    """An upload in parts becomes a file, on which a batch runs; large downloads are complete."""
    del folder
    content = lines("/v1/embeddings", *(f"line-{n}" for n in range(1000)))
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    upload = client.uploads.upload_file_chunked(
        file=content, filename="large.jsonl", bytes=len(content), mime_type="application/jsonl", purpose="batch",
        part_size=50_000, md5=md5,
    )  # fmt: skip
    assert (upload.status, upload.file.bytes) == ("completed", len(content)), upload
    assert client.files.content(upload.file.id).read() == content
    created = client.batches.create(
        input_file_id=upload.file.id, endpoint="/v1/embeddings", completion_window="24h"
    )
    assert ended(client, created.id).request_counts.completed == 1000
    other = client.uploads.create(filename="x", bytes=9, mime_type="text/plain", purpose="batch")
    piece = client.uploads.parts.create(other.id, data=b"four")
    error = refused(openai.BadRequestError, client.uploads.complete, other.id, part_ids=[piece.id])
    assert error.param == "part_ids", error
    assert client.uploads.cancel(other.id).status == "cancelled"


def endpoints(client: OpenAI, folder: Path) -> None:
    """A batch of each endpoint runs to its end, and its output holds each id once."""
    batches = {
        endpoint: started(client, lines(endpoint, "a", "b", "c"), endpoint, metadata={"for": endpoint})
        for endpoint in BODIES
    }
    for endpoint, created in batches.items():
        batch = ended(client, created.id)
        assert batch.status == "completed", batch
        assert (batch.request_counts.total, batch.request_counts.completed) == (3, 3), batch
        assert (batch.endpoint, batch.metadata, batch.error_file_id) == (endpoint, {"for": endpoint}, None)
        # The oldest SDK has no type for it, but passes it on.
        assert batch.model_dump()["usage"]["total_tokens"] > 0, batch
        target = folder / "output.jsonl"
        client.files.content(batch.output_file_id).write_to_file(target)
        found = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
        assert [line["custom_id"] for line in found] == ["a", "b", "c"]
        assert all(line["response"]["status_code"] == 200 and line["error"] is None for line in found)
        assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"


def failures(client: OpenAI, folder: Path) -> None:
    """A line that its backend refuses is in the error file; a faulty input fails the batch, line by line."""
    del folder
    mixed = lines("/v1/chat/completions", "a") + lines("/v1/chat/completions", "b", stop="refuse")
    batch = ended(client, started(client, mixed).id)
    counts = batch.request_counts
    assert (batch.status, counts.completed, counts.failed) == ("completed", 1, 1), batch
    (line,) = client.files.content(batch.error_file_id).text.splitlines()
    error = json.loads(line)
    assert (error["custom_id"], error["response"]["status_code"]) == ("b", 400), error
    twice = lines("/v1/chat/completions", "a", "a", "b") + b"{\n"
    batch = ended(client, started(client, twice).id)
    assert batch.status == "failed", batch
    faults = [(fault.line, fault.code) for fault in batch.errors.data]
    assert faults == [(2, "duplicate_custom_id"), (4, "invalid_json_line")], faults


def pages(client: OpenAI, folder: Path) -> None:
    """Page through lists one object at a time, the newest first, without a gap, to the end."""
    del folder
    made = [started(client, lines("/v1/completions", "a"), "/v1/completions") for _ in range(3)]
    listed = list(client.batches.list(limit=1))
    times = [batch.created_at for batch in listed]
    assert times == sorted(times, reverse=True), times
    names = [batch.id for batch in listed]
    ours = [batch.id for batch in made]
    assert [name for name in names if name in ours] == ours[::-1]
    assert len(set(names)) == len(names)
    files = [file.id for file in client.files.list(limit=1, purpose="batch")]
    assert {batch.input_file_id for batch in made} <= set(files)
    assert len(set(files)) == len(files) < FILES_MAX


def cancelling(client: OpenAI, folder: Path) -> None:
    """A running batch is cancelled, and may be cancelled again; a completed one stays as it is."""
    del folder
    created = started(client, lines("/v1/chat/completions", "a", "b", stop="wait"))
    running(client, created.id)
    cancelled = client.batches.cancel(created.id)
    assert cancelled.status in {"cancelling", "cancelled"}, cancelled
    assert cancelled.cancelling_at, cancelled
    batch = ended(client, created.id)
    assert batch.status == "cancelled", batch
    assert client.batches.cancel(created.id).status == "cancelled"
    errors = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
    assert [line["error"]["code"] for line in errors] == ["batch_cancelled"] * 2, errors
    done = ended(client, started(client, lines("/v1/chat/completions", "a")).id)
    refused(openai.ConflictError, client.batches.cancel, done.id)


def deletion(client: OpenAI, folder: Path) -> None:
    """A deleted file is not found any more."""
    del folder
    file = client.files.create(file=lines("/v1/embeddings", "a"), purpose="batch")
    assert client.files.delete(file.id).deleted
    refused(openai.NotFoundError, client.files.retrieve, file.id)
    refused(openai.NotFoundError, client.files.content, file.id)


def refusals(client: OpenAI, folder: Path) -> None:
    """Each kind of error is the SDK's exception of that kind."""
    del folder
    stranger = OpenAI(base_url=client.base_url, api_key="sk-wrong")
    assert refused(openai.AuthenticationError, stranger.batches.list).code == "invalid_api_key"
    refused(openai.NotFoundError, client.batches.retrieve, "batch_none")
    refused(openai.NotFoundError, client.files.retrieve, "file-none")
    file = client.files.create(file=lines("/v1/embeddings", "a"), purpose="batch")
    options = {"input_file_id": file.id, "completion_window": "24h", "endpoint": "/v1/none"}
    error = refused(openai.BadRequestError, client.batches.create, **options)
    assert (error.param, error.code) == ("endpoint", "invalid_value"), error
    error = refused(openai.BadRequestError, client.files.create, file=b"", purpose="batch")
    stranger.close()


def concurrently(client: OpenAI, folder: Path) -> None:
    """The asynchronous client does the same."""
    del folder

    async def run() -> None:
        async with AsyncOpenAI(base_url=client.base_url, api_key=client.api_key) as other:
            content = lines("/v1/embeddings", "a")
            uploads = (other.files.create(file=content, purpose="batch") for _ in range(3))
            files = await asyncio.gather(*uploads)
            assert len({file.id for file in files}) == 3
            content = await other.files.content(files[0].id)
            assert content.text.startswith("{")

    asyncio.run(run())


def main() -> None:
    """Do it all."""
    base_url, key, folder = sys.argv[1:]
    print(f"openai {openai.__version__}")
    with OpenAI(base_url=base_url, api_key=key) as client:
        for step in (uploads, parts, endpoints, failures, pages, cancelling, deletion, refusals, concurrently):
            step(client, Path(folder))
            print(f"{step.__name__}: as it should be", flush=True)


if __name__ == "__main__":
    main()
