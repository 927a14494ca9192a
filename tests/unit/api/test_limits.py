"""Limits of projects: requests beyond them are refused at once, and accepted ones never fail for them."""

import asyncio
from dataclasses import replace

import httpx
import pytest
from support.dependencies import ADMIN, NOW, ManualClock, client_of, open_dependencies, with_settings

from tidemill.configuration.settings import Settings
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.resources.batch import Batch, RequestCounts, Status
from tidemill.schemas.resources.file import OBJECT_BYTES

LINE = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"x"}}\n'
BATCH = {"endpoint": "/v1/embeddings", "completion_window": "24h"}


@pytest.fixture
async def deps(tmp_path):
    """The project `p` may have 2 batches in progress, 10 lines and 10 files of a line; `q` has more room."""
    settings = Settings(
        limits={
            "batches_in_progress_max": 2,
            "lines_enqueued_max": 10,
            "bytes_stored_max": 10 * len(LINE) + 2 * OBJECT_BYTES,
        },
        projects={"q": {"limits": {"batches_in_progress_max": 3}}},
    )
    async with open_dependencies(tmp_path) as deps:
        yield with_settings(deps, settings)


async def upload(client, lines: int = 1, content: bytes = LINE) -> httpx.Response:
    """A file of so many lines."""
    return await client.post("/files", data={"purpose": "batch"}, files={"file": ("f", content * lines)})


async def create(client, file_id: str, **headers: str) -> httpx.Response:
    """A batch of the file."""
    return await client.post("/batches", json=BATCH | {"input_file_id": file_id}, headers=headers)


def is_beyond(answer: httpx.Response, limit: str, *words: str) -> bool:
    """Whether it is a 429 that names the limit and that the SDKs do not retry."""
    error = answer.json()["error"]
    assert answer.status_code == 429, answer.text
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert answer.headers["x-should-retry"] == "false"
    return all(word in error["message"] for word in (f"(limit: {limit})", *words))


def report(deps, batch_id: str, **changes: object) -> None:
    """Publish a change of a batch, like results."""
    batch = Batch.model_validate_json(deps.view.batch("p", batch_id)).model_copy(update=changes)
    value = codec.encode(BatchRecord(project="p", batch=batch))
    deps.view.fold(topics.BATCHES.name, [(batch.id, value, 0)])


async def test_the_limit_of_batches_in_progress(deps, client):
    """The third is refused until one ends; another project has its own limit."""
    file_id = (await upload(client)).json()["id"]
    first = (await create(client, file_id)).json()["id"]
    assert (await create(client, file_id)).status_code == 200
    before = len(deps.log.records)
    assert is_beyond(await create(client, file_id), "batches_in_progress_max", "'p' has 2 batches", "may have 2")
    assert is_beyond(await create(client, "file-none"), "batches_in_progress_max")
    assert len(deps.log.records) == before
    async with client_of(deps, "key-of-q") as other:
        answers = [await create(other, "file-none") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    report(deps, first, status=Status.COMPLETED, completed_at=NOW)
    assert (await create(client, file_id)).status_code == 200


async def test_a_repeated_create_needs_no_room(client):
    """Its answer is the batch of the first, even in a full project."""
    file_id = (await upload(client)).json()["id"]
    made = await create(client, file_id, **{"idempotency-key": "k"})
    await create(client, file_id)
    assert (await create(client, file_id, **{"idempotency-key": "k"})).json() == made.json()


async def test_concurrent_creates_stay_within_the_limit(client):
    """Requests in progress count: of ten, two succeed."""
    file_id = (await upload(client)).json()["id"]
    answers = await asyncio.gather(*(create(client, file_id) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] * 2 + [429] * 8


async def test_the_limit_of_lines_enqueued(deps, client):
    """Lines of the file count until ingest has counted them, and no longer once they are done."""
    six = (await upload(client, 6)).json()["id"]
    five = (await upload(client, 1, b"{}\n" * 5)).json()["id"]
    first = (await create(client, six)).json()["id"]
    words = ("6 lines enqueued", "may have 10", "6 more")
    assert is_beyond(await create(client, six), "lines_enqueued_max", *words)
    report(deps, first, status=Status.IN_PROGRESS, request_counts=RequestCounts(total=6, completed=1))
    assert is_beyond(await create(client, six), "lines_enqueued_max", "5 lines enqueued")
    report(deps, first, status=Status.IN_PROGRESS, request_counts=RequestCounts(total=6, completed=1, failed=1))
    second = (await create(client, six)).json()["id"]
    report(deps, first, status=Status.COMPLETED, completed_at=NOW)
    assert is_beyond(await create(client, five), "lines_enqueued_max", "6 lines enqueued", "5 more")
    report(deps, second, status=Status.CANCELLED, cancelled_at=NOW)
    assert (await create(client, five)).status_code == 200


async def test_the_limit_of_bytes_stored(tmp_path, client):
    """Files of all kinds count until they are deleted; refused ones leave nothing."""
    file_id = (await upload(client, 9)).json()["id"]
    assert is_beyond(
        await upload(client, 2),
        "bytes_stored_max",
        f"stores {9 * len(LINE) + OBJECT_BYTES:,} bytes",
        f"; this upload takes at least {OBJECT_BYTES + 2 * len(LINE):,} bytes more. ",
        "Delete files you do not need: `DELETE /v1/files/ID`",
    )
    assert [path.name for path in (tmp_path / "store" / "files").glob("*/*")] == [file_id]
    assert (await upload(client)).status_code == 200
    assert (await client.delete(f"/files/{file_id}")).status_code == 200
    assert (await upload(client, 9)).status_code == 200


async def test_uploads_in_parts_count(client):
    """When they are created, and part by part."""
    wish = {"filename": "f", "purpose": "batch", "bytes": 8 * len(LINE), "mime_type": "application/jsonl"}
    upload_id = (await client.post("/uploads", json=wish)).json()["id"]
    part = {"files": {"data": ("d", LINE * 8)}}
    taken = await client.post(f"/uploads/{upload_id}/parts", **part)
    assert taken.status_code == 200
    assert is_beyond(await client.post(f"/uploads/{upload_id}/parts", **part), "bytes_stored_max")
    assert is_beyond(await client.post("/uploads", json=wish), "bytes_stored_max")
    done = await client.post(f"/uploads/{upload_id}/complete", json={"part_ids": [taken.json()["id"]]})
    assert done.status_code == 200
    assert (await upload(client, 2)).status_code == 200
    assert is_beyond(await upload(client), "bytes_stored_max")


async def test_failed_requests_release_their_room(deps, client):
    """If the log is away, or the file is invalid."""
    deps.log.away = True
    assert (await upload(client, 9)).status_code == 503
    assert (await create(client, "file-none")).status_code == 503
    deps.log.away = False
    assert (await upload(client, 9, b"no json\n")).status_code == 400
    assert (await upload(client, 10)).status_code == 200
    assert [(await create(client, "file-none")).status_code for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize(("content", "lines"), [(LINE, 1), (LINE * 3, 3), (LINE * 2 + LINE.strip(), 3)])
async def test_an_upload_counts_its_lines(deps, client, content, lines):
    """The last one needs no newline."""
    file_id = (await upload(client, 1, content)).json()["id"]
    assert deps.view.file("p", file_id).lines == lines
    assert codec.decode_file(deps.log.records[-1][2]).lines == lines


async def test_limits_of_numbers(deps):
    """Of files, batches, uploads and keys; a deletion makes room."""
    few = {"files_max": 2, "batches_max": 2, "uploads_pending_max": 1, "keys_max": 1}
    deps = with_settings(deps, Settings(limits=few))
    wish = {"filename": "f", "purpose": "batch", "bytes": 9, "mime_type": "application/jsonl"}
    async with client_of(deps, "key-of-p") as client, client_of(deps, ADMIN) as root:
        first, second = [(await upload(client)).json()["id"] for _ in range(2)]
        assert is_beyond(await upload(client), "files_max", "has 2 files and may have 2", "Delete files")
        for _ in range(2):
            batch = (await create(client, first)).json()["id"]
            report(deps, batch, status=Status.COMPLETED, completed_at=NOW)
        assert is_beyond(await create(client, first), "batches_max", "has 2 batches and may have 2")
        assert (await client.delete(f"/files/{second}")).status_code == 200
        pending = (await client.post("/uploads", json=wish)).json()["id"]
        assert is_beyond(await client.post("/uploads", json=wish), "uploads_pending_max", "Complete or cancel")
        assert (await client.post(f"/uploads/{pending}/cancel")).status_code == 200
        assert (await client.post("/uploads", json=wish)).status_code == 200
        key = (await root.post("/admin/keys", json={"name": "n", "project": "p"})).json()["id"]
        again = await root.post("/admin/keys", json={"name": "n", "project": "p"})
        assert is_beyond(again, "keys_max", "Project 'p' has 1 key and may have 1", "Revoke")
        assert (await root.delete(f"/admin/keys/{key}")).status_code == 200
        assert (await root.post("/admin/keys", json={"name": "n", "project": "p"})).status_code == 200


async def test_an_expired_key_makes_room(tmp_path):
    """Otherwise short-lived keys would fill a project, though each ends by itself."""
    clock, few = ManualClock(), Settings(limits={"keys_max": 2})
    async with open_dependencies(tmp_path, clock, few) as deps, client_of(deps, ADMIN) as root:
        lives = [{"expires_in_seconds": 60}, {}, {}]
        assert [await new_key(root, **life) for life in lives] == [200, 200, 429]
        clock.now += 59
        assert await new_key(root) == 429
        clock.now += 1
        assert [await new_key(root) for _ in range(2)] == [200, 429]


async def new_key(root, **fields) -> int:
    """How the creation of a key is answered."""
    return (await root.post("/admin/keys", json={"name": "n", "project": "p"} | fields)).status_code


async def test_concurrent_uploads_and_keys_stay_within_the_limit(deps):
    """Records on their way to the log count."""

    class Slow:
        async def send(self, *record, headers=()):
            await asyncio.sleep(0)
            return await deps.log.send(*record, headers=headers)

    limits = {"uploads_pending_max": 2, "keys_max": 2}
    busy = replace(deps, settings=Settings(limits=limits), log=Slow())
    wish = {"filename": "f", "purpose": "batch", "bytes": 9, "mime_type": "application/jsonl"}
    async with client_of(busy, "key-of-p") as client, client_of(busy, ADMIN) as root:
        uploads = await asyncio.gather(*(client.post("/uploads", json=wish) for _ in range(6)))
        keys = await asyncio.gather(*(root.post("/admin/keys", json={"name": "n"}) for _ in range(6)))
    for answers in (uploads, keys):
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429, 429]
    assert not busy.view.quotas._reserved
