"""The bytes of parts count against the quota until they are deleted, which is when their upload ends."""

import asyncio
from dataclasses import replace

import pytest
from support.dependencies import NOW, client_of, with_settings
from support.waiting import WAIT_SECONDS_MAX, until

from tidemill.api import lookup
from tidemill.api.batches import file_removal
from tidemill.api.routes import uploads
from tidemill.api.view.pending_uploads import KEPT_SECONDS
from tidemill.configuration.settings import Settings
from tidemill.kafka.connection import LogUnavailable
from tidemill.quotas import Quota
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import FileRecord, PartRecord, UploadRecord
from tidemill.schemas.ports import once
from tidemill.schemas.resources.file import OBJECT_BYTES, UPLOAD_LIFE_SECONDS, File, Upload, UploadPart
from tidemill.storage.owner import CONTESTED

LINE = b'{"custom_id":"a"}\n'
PART_COST = len(LINE) + OBJECT_BYTES
FILE_COST = 3 * len(LINE) + OBJECT_BYTES
WISH = {"filename": "f", "purpose": "batch", "bytes": 3 * len(LINE), "mime_type": "text/jsonl"}


@pytest.fixture
async def deps(deps):
    """The project has room for three parts, and no byte more."""
    return with_settings(deps, Settings(limits={"bytes_stored_max": 3 * PART_COST}))


def failing(deps) -> pytest.MonkeyPatch:
    """The store deletes nothing until the returned patch is undone."""

    async def delete(_key):
        raise OSError("away")

    away = pytest.MonkeyPatch()
    away.setattr(deps.store, "delete", delete)
    return away


async def begin(client) -> tuple[str, list[str]]:
    """The path of an upload, and the ids of its three parts."""
    path = f"/uploads/{(await client.post('/uploads', json=WISH)).raise_for_status().json()['id']}"
    made = [await client.post(f"{path}/parts", files={"data": LINE}) for _ in range(3)]
    return path, [each.raise_for_status().json()["id"] for each in made]


async def end(client, begun: tuple[str, list[str]], how: str) -> dict:
    """Cancel or complete an upload."""
    path, part_ids = begun
    return (await client.post(f"{path}/{how}", json={"part_ids": part_ids})).raise_for_status().json()


async def stored(deps) -> set[str]:
    """The keys of all parts."""
    return {key async for key in deps.store.keys("uploads/")}


async def put(deps, number: int) -> None:
    """Store the part of a cancelled upload, as after a crash."""
    upload_id, key = f"upload_{number:032x}", f"uploads/{number}"
    await deps.store.write(key, once(LINE))
    upload = Upload(
        id=upload_id, bytes=len(LINE), created_at=NOW, expires_at=NOW + UPLOAD_LIFE_SECONDS, filename="f",
        purpose="batch", status="cancelled",
    )  # fmt: skip
    part = UploadPart(id=f"part_{number:032x}", created_at=NOW, upload_id=upload_id)
    deps.view.uploads.put(UploadRecord(project="p", upload=upload, life_seconds=None))
    deps.view.uploads.put(PartRecord(part=part, bytes=len(LINE), key=key))


async def put_file(deps, number: int) -> None:
    """Store a file that is deleted, but for its bytes."""
    file_id, key = f"file-{number}", f"files/{number}"
    await deps.store.write(key, once(LINE))
    file = File(id=file_id, bytes=len(LINE), created_at=NOW, filename="f", purpose="batch")
    deps.view.put_file(FileRecord(project="p", file=file, key=key, sha256="0" * 64), 0)
    deps.view.drop_file(file_id, -1)
    deps.view.hold(file_id, holds=True)


@pytest.mark.parametrize(("how", "left"), [("cancel", 0), ("complete", FILE_COST)])
async def test_parts_are_deleted_when_their_upload_ends(deps, client, how, left):
    """At once: a project at its quota has their room for the next upload, also right after a completion."""
    begun = await begin(client)
    assert deps.view.quotas.held("p", Quota.BYTES) == 3 * PART_COST
    await end(client, begun, how)
    assert not await stored(deps)
    assert not deps.view.uploads.keys(begun[0].split("/")[2])
    assert deps.view.quotas.held("p", Quota.BYTES) == left
    following = await client.post("/uploads", json=WISH | {"bytes": 3 * PART_COST - left - OBJECT_BYTES})
    assert following.status_code == 200


@pytest.mark.parametrize("how", ["cancel", "complete"])
@pytest.mark.parametrize("why", ["the store fails", "the store is contested", "the log is away"])
async def test_parts_count_until_they_are_deleted(deps, client, how, why):
    """If that fails, their upload ends all the same, and a sweep deletes them later."""
    begun = await begin(client)
    away = failing(deps) if why == "the store fails" else pytest.MonkeyPatch()
    if why == "the store is contested":
        away.setattr(deps.owner, "fault", CONTESTED)
    if why == "the log is away":
        upload_deletion = deps.publisher.upload_deletion

        async def refused(key):
            deps.log.away = True
            try:
                await upload_deletion(key)
            finally:
                deps.log.away = False

        away.setattr(deps.publisher, "upload_deletion", refused)
    await end(client, begun, how)
    assert deps.view.quotas.held("p", Quota.BYTES) >= 3 * PART_COST
    refused_one = await client.post("/uploads", json=WISH)
    assert (refused_one.status_code, "bytes_stored_max" in refused_one.text) == (429, True)
    away.undo()
    await file_removal.sweep(deps)
    assert not await stored(deps)
    assert deps.view.quotas.held("p", Quota.BYTES) == (FILE_COST if how == "complete" else 0)


async def test_a_part_that_comes_too_late_leaves_nothing(deps, client, monkeypatch):
    """Its upload is cancelled while the store takes it, so that no record would count its bytes."""
    begun = await begin(client)
    roomy = with_settings(deps, Settings())
    receive = uploads.parts.receive

    async def slow(*args):
        taken = await receive(*args)
        await end(client, begun, "cancel")
        return taken

    monkeypatch.setattr(uploads.parts, "receive", slow)
    async with client_of(roomy) as roomy_client:
        answer = await roomy_client.post(f"{begun[0]}/parts", files={"data": LINE})
    assert (answer.status_code, "'cancelled'" in answer.text) == (400, True)
    assert not await stored(deps)


async def test_a_repetition_at_another_process_gets_the_same_answer(deps, client):
    """This process has read nothing of the completion there when it finds that the parts are gone."""
    begun = await begin(client)
    upload_id, part_ids = begun[0].split("/")[2], begun[1]
    record = deps.view.uploads.upload("p", upload_id)
    done = record.upload.model_copy(update={"status": "completed"})
    ended = record.model_copy(update={"upload": done, "part_ids": tuple(part_ids)})
    deps.log.unread.append((topics.UPLOADS.name, upload_id, codec.encode(ended)))
    for part_id in part_ids:
        await deps.store.delete(deps.view.uploads.parts(upload_id)[part_id].key)
    assert await end(client, begun, "complete") == done.model_dump(mode="json")


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (lambda begun: {"part_ids": begun[1][:1]}, ("bytes in all", [])),
        (lambda begun: {"part_ids": begun[1], "md5": "0" * 32}, ("MD5", [])),
        (lambda begun: {"part_ids": [*begun[1], "part_none"]}, ("No such part", [topics.UPLOADS.name])),
    ],
)
async def test_a_wrong_completion_is_refused_also_without_the_log(deps, client, monkeypatch, wrong, expected):
    """Only a missing part makes the api read the log: another process may have ended the upload."""
    monkeypatch.setattr(lookup, "SEEN_SECONDS_MAX", 0.01)
    begun = await begin(client)
    (said, read), asked = expected, []

    async def catch_up(*names):
        asked.extend(names)
        raise LogUnavailable

    async with client_of(replace(deps, reading=replace(deps.reading, catch_up=catch_up))) as apart:
        answer = await apart.post(f"{begun[0]}/complete", json=wrong(begun))
    assert (answer.status_code, said in answer.text) == (400, True)
    assert asked == read


async def test_an_upload_is_remembered_as_long_as_its_parts(deps, client, clock):
    """Nothing else says whose they are."""
    begun = await begin(client)
    away = failing(deps)
    clock.now += UPLOAD_LIFE_SECONDS + KEPT_SECONDS + 1
    await file_removal.sweep(deps)
    assert deps.view.quotas.held("p", Quota.BYTES) == 3 * PART_COST
    away.undo()
    await file_removal.sweep(deps)
    assert not await stored(deps)
    assert deps.view.uploads.upload("p", begun[0].split("/")[2]) is None


async def test_a_full_round_is_followed_by_the_next(deps, monkeypatch):
    """At once, until nothing is left."""
    monkeypatch.setattr(file_removal, "ROUND_UPLOADS_MAX", 2)
    monkeypatch.setattr(file_removal, "ROUND_SECONDS", 2 * WAIT_SECONDS_MAX)
    for number in range(5):
        await put(deps, number)
    sweeping = asyncio.create_task(file_removal.sweep_forever(deps))

    async def is_empty() -> bool:
        return not await stored(deps)

    try:
        await until(is_empty, "the deletion of all parts")
    finally:
        sweeping.cancel()


@pytest.mark.parametrize("kind", ["uploads", "files"])
async def test_a_full_round_that_deletes_nothing_waits(deps, kind, monkeypatch):
    """Else the api would ask a store that fails without an end."""
    monkeypatch.setattr(file_removal, f"ROUND_{kind.upper()}_MAX", 2)
    away = failing(deps)
    for number in range(5):
        if kind == "uploads":
            await put(deps, number)
        else:
            await put_file(deps, number)
    rounds = file_removal.Sweeps(deps, lambda: 0.0)
    assert await rounds.round() is False
    away.undo()
    assert [await rounds.round() for _ in range(3)] == [True, True, False]
