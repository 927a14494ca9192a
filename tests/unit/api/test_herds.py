"""Requests that wait for an object of another process cost nothing while other objects change."""

import asyncio

import pytest
from support.dependencies import ADMIN, NOW, batch_of, client_of
from support.waiting import until

from tidemill.api.changes import ChangeEvent
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import AuditRecord, BatchRecord, PartRecord
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.resources.file import UploadPart

COUNT = 20


def fold(deps, batch) -> None:
    """Read the state of a batch from the log."""
    value = codec.encode(BatchRecord(project="p", batch=batch))
    deps.view.fold(topics.BATCHES.name, [(batch.id, value, 0)])


async def waiting(deps, count: int) -> None:
    """Return once so many objects have waiters."""
    await until(lambda: len(deps.view.changes._waiting) == count, "the waiters")


@pytest.fixture
def looked(monkeypatch):
    """The ids of the objects that requests have looked for, each time."""
    found, wait_for = [], ChangeEvent.wait_for

    async def counting(event, object_id, look, *, seconds_max):
        def looking():
            found.append(object_id)
            return look()

        del seconds_max  # the test ends the wait
        return await wait_for(event, object_id, looking, seconds_max=60.0)

    monkeypatch.setattr(ChangeEvent, "wait_for", counting)
    return found


async def test_a_change_wakes_those_who_wait_for_its_object(deps, client, looked):
    """Of unknown batches, and of appends with a gap."""
    unknown = [batch_of(ids.new_batch_id()) for _ in range(COUNT)]
    opened = [batch_of(ids.new_batch_id()) for _ in range(COUNT)]
    for number, one in enumerate(opened):
        opened[number] = one.model_copy(
            update={"tidemill": one.tidemill.model_copy(update={"stream": one.id, "open": True, "sequence": 0})}
        )
        fold(deps, opened[number])
    body = {"sequence": 2, "requests": [{"custom_id": "a", "body": {"model": "m", "input": "x"}}]}
    asking = [asyncio.create_task(client.get(f"/batches/{one.id}")) for one in unknown]
    asking += [asyncio.create_task(client.post(f"/batches/{one.id}/requests", json=body)) for one in opened]
    await waiting(deps, 2 * COUNT)
    looked.clear()
    for _ in range(10):
        fold(deps, batch_of("batch_other"))
        await asyncio.sleep(0)
    assert not looked
    fold(deps, unknown[0])
    appended = opened[0].tidemill.model_copy(update={"sequence": 1})
    fold(deps, opened[0].model_copy(update={"tidemill": appended}))
    assert [(await asking[number]).status_code for number in (0, COUNT)] == [200, 200]
    assert sorted(looked) == sorted([unknown[0].id, opened[0].id])
    for one in asking:
        one.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_a_completion_waits_for_the_parts_that_are_missing(deps, client, looked):
    """Other parts of its upload do not wake it."""
    wish = {"filename": "f", "purpose": "batch", "bytes": 36, "mime_type": "text/jsonl"}
    upload_id = (await client.post("/uploads", json=wish)).json()["id"]
    parts = []
    for number in range(2):
        form = {"files": {"data": b'{"custom_id":"a"}\n'}}
        made = (await client.post(f"/uploads/{upload_id}/parts", **form)).json()
        parts.append(deps.view.uploads.parts(upload_id)[made["id"]])
        deps.view.uploads.drop(f"{upload_id}/{made['id']}")
        del number
    wanted = {"part_ids": [each.part.id for each in parts]}
    asking = asyncio.create_task(client.post(f"/uploads/{upload_id}/complete", json=wanted))
    await waiting(deps, 1)
    other = UploadPart(id=ids.new_part_id(), created_at=NOW, upload_id=upload_id)
    for record in (PartRecord(part=other, bytes=1, key="k"), *reversed(parts)):
        key = f"{upload_id}/{record.part.id}"
        deps.view.fold(topics.UPLOADS.name, [(key, codec.encode(record), 0)])
        await asyncio.sleep(0)
    assert (await asking).status_code == 200
    assert looked == [parts[0].part.id] * 2


async def test_a_batch_that_waits_for_its_files_is_found_with_them(deps, client, looked):
    """Their record wakes those who wait for the batch."""
    ended = batch_of(ids.new_batch_id())
    asking = asyncio.create_task(client.get(f"/batches/{ended.id}"))
    await waiting(deps, 1)
    value = codec.encode(BatchRecord(project="p", batch=ended, files_offset=0))
    deps.view.fold(topics.BATCHES.name, [(ended.id, value, 0)])
    await waiting(deps, 1)
    deps.view.fold(topics.FILES.name, [("file-other", None, 0)])
    assert (await asking).status_code == 200
    assert set(looked) == {ended.id}


async def test_a_page_of_the_trail_waits_for_its_cursor(deps, looked):
    """The key of its record is another one."""
    record = AuditRecord(
        id=ids.new_audit_id(), at=NOW, project="p", actor="a", action=Action.KEY_CREATE, target="t"
    )
    async with client_of(deps, ADMIN) as admin:
        asking = asyncio.create_task(admin.get(f"/admin/audit?after={record.id}"))
        await waiting(deps, 1)
        deps.view.fold(topics.AUDIT.name, [("p", codec.encode(record), 0)])
        assert (await asking).status_code == 200
    assert looked == [record.id] * 2


async def test_nothing_is_kept_of_objects_that_nobody_waits_for():
    """Clients choose the ids."""
    event = ChangeEvent()
    event.notify("known")
    await asyncio.gather(*(event.wait_for(str(number), lambda: None, seconds_max=0.0) for number in range(COUNT)))
    assert not event._waiting
