"""Downloads, orphans and uploads in parts, on a folder and without a broker."""

from dataclasses import replace

import httpx
import orjson
import pytest
from support.dependencies import NOW, ManualClock, batch_of, client_of, open_dependencies

from tidemill.api.batches import file_removal
from tidemill.api.view.orphans import ORPHAN_SECONDS_MIN
from tidemill.api.view.pending_uploads import GRACE_SECONDS, KEPT_SECONDS
from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord, FileRecord
from tidemill.schemas.log.part import file_key, index_key
from tidemill.schemas.ports import NotFound, once
from tidemill.schemas.resources.batch import Cut, Extras, Status
from tidemill.schemas.resources.file import File

HOUR = 3_600
LINE = b'{"custom_id":"a"}\n'


async def upload(client: httpx.AsyncClient, content: bytes = LINE) -> str:
    """The path of a new file's content."""
    answer = await client.post("/files", data={"purpose": "batch"}, files={"file": ("f", content)})
    return f"/files/{answer.json()['id']}/content"


async def is_stored(deps, key: str) -> bool:
    """Whether the store has an object."""
    try:
        await deps.store.size(key)
    except NotFound:
        return False
    return True


async def content():
    """One byte."""
    yield b"x"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/files", "GET, HEAD, OPTIONS, POST"), ("POST", "/files/x", "DELETE, GET, HEAD, OPTIONS"),
        ("DELETE", "/batches", "GET, HEAD, OPTIONS, POST"), ("GET", "/batches/x/cancel", "OPTIONS, POST"),
        ("DELETE", "/models", "GET, HEAD, OPTIONS"), ("HEAD", "/uploads", "OPTIONS, POST"),
    ],
)  # fmt: skip
async def test_a_wrong_method_gets_the_allowed_ones(client, method, path, allow):
    """Those of all routes of the path, as for `OPTIONS`."""
    answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allow)
    answer = await client.options(path, headers={"authorization": ""})
    assert (answer.status_code, answer.headers["allow"], answer.content) == (204, allow, b"")


@pytest.mark.parametrize("stored", [LINE[:5], LINE + LINE])
async def test_a_damaged_file_is_an_error_before_its_first_byte(tmp_path, caplog, stored):
    """Whole, in part, and to those who read it for something else; the log has its id."""
    async with open_dependencies(tmp_path) as deps, client_of(deps) as client:
        path = await upload(client)
        file_id = path.split("/")[2]
        await deps.store.write(file_key(file_id), once(stored))
        estimate = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
        for answer in (
            await client.get(path),
            await client.get(path, headers={"range": "bytes=0-3"}),
            await client.post("/batches/estimate", json=estimate),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "file_damaged")
            assert answer.headers["x-should-retry"] == "false"
            assert f"{len(stored)} instead of {len(LINE)} bytes" in answer.text
        assert file_id in caplog.text


async def test_lost_bytes_are_not_called_deleted(tmp_path):
    """The file is listed, so a client would not believe a 404."""
    async with open_dependencies(tmp_path) as deps, client_of(deps) as client:
        path = await upload(client)
        file_id = path.split("/")[2]
        await deps.store.delete(file_key(file_id))
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "file_damaged")
        assert "the store has none of its bytes" in answer.text
        deps.view.drop_file(file_id, -1)
        assert (await client.get(path)).status_code == 404


async def test_orphans_are_deleted_after_a_day(tmp_path):
    """Objects with a record, and recently found ones, stay."""
    clock = ManualClock()
    async with open_dependencies(tmp_path, clock) as deps:
        async with client_of(deps) as other:
            kept = (await upload(other)).split("/")[2]
        for key in ("files/stray", "uploads/u/stray", "parts/of-results"):
            await deps.store.write(key, content())
        assert await file_removal.collect_orphans(deps) == 0
        clock.now += ORPHAN_SECONDS_MIN - 1
        await deps.store.write("files/late", content())
        assert await file_removal.collect_orphans(deps) == 0
        clock.now += 1
        assert await file_removal.collect_orphans(deps) == 2
        assert not await is_stored(deps, "files/stray")
        assert not await is_stored(deps, "uploads/u/stray")
        for key in (file_key(kept), "files/late", "parts/of-results"):
            assert await is_stored(deps, key)


async def test_a_process_that_does_not_read_the_log_deletes_no_orphans(tmp_path):
    """Another process may have written the record of an object long ago."""
    clock = ManualClock()
    async with open_dependencies(tmp_path, clock) as deps:
        for key in ("files/named", "files/stray"):
            await deps.store.write(key, content())
        assert await file_removal.collect_orphans(deps) == 0
        deps.log.away = True
        file = File(id="named", bytes=1, created_at=1, filename="f", purpose="batch")
        record = FileRecord(project="p", file=file, key="files/named", sha256="")
        deps.log.unread.append((topics.FILES.name, "named", codec.encode(record)))
        clock.now += ORPHAN_SECONDS_MIN
        with pytest.raises(LogUnavailable):
            await file_removal.collect_orphans(deps)
        assert await is_stored(deps, "files/stray")
        deps.log.away = False
        assert await file_removal.collect_orphans(deps) == 1
        assert await is_stored(deps, "files/named")
        assert not await is_stored(deps, "files/stray")


@pytest.mark.parametrize(
    ("numbered", "kinds"),
    [(None, ("output", "errors")), (Cut(lines_max=1, bytes_max=1), ("output-00001", "output-01000", "errors"))],
)
async def test_the_files_of_a_batch_that_results_cannot_finish_are_no_orphans(tmp_path, numbered, kinds):
    """It may have written them days ago, and writes them again before their records."""
    clock, batch_id = ManualClock(), "batch_" + "0" * 32
    batch = batch_of(batch_id, status=Status.FINALIZING, tidemill=Extras(numbered=numbered))
    keys = [file_key(ids.derived_file_id(batch_id, kind), "writer") for kind in kinds]
    async with open_dependencies(tmp_path, clock) as deps:
        deps.view.put_batch(BatchRecord(project="p", batch=batch))
        for key in keys:
            await deps.store.write(key, content())
            await deps.store.write(index_key(key), content())
        assert await file_removal.collect_orphans(deps) == 0
        clock.now += ORPHAN_SECONDS_MIN
        assert await file_removal.collect_orphans(deps) == 0
        ended = batch.model_copy(update={"status": Status.COMPLETED, "completed_at": NOW})
        deps.view.put_batch(BatchRecord(project="p", batch=ended))
        assert await file_removal.collect_orphans(deps) == 2 * len(keys)


async def test_a_search_for_orphans_spares_outputs_of_batches_that_grow_old_meanwhile(tmp_path):
    """Results may finish such a batch at any time. Here the store takes three hours to delete an object."""
    clock, batch_id = ManualClock(), "batch_" + "0" * 32
    index = index_key(file_key(ids.derived_file_id(batch_id, "output"), "writer"))
    async with open_dependencies(tmp_path, clock) as deps:
        await deps.store.write("files/stray", content())
        assert await file_removal.collect_orphans(deps) == 0
        clock.now += 2 * HOUR
        batch = batch_of(batch_id, status=Status.FINALIZING).model_copy(update={"created_at": int(clock.now)})
        deps.view.put_batch(BatchRecord(project="p", batch=batch))
        await deps.store.write(index, content())
        assert await file_removal.collect_orphans(deps) == 0
        clock.now += ORPHAN_SECONDS_MIN - 2 * HOUR
        delete = deps.store.delete

        async def slow_delete(key):
            clock.now += 3 * HOUR
            await delete(key)

        deps.store.delete = slow_delete
        assert await file_removal.collect_orphans(deps) == 1
        assert await is_stored(deps, index)


async def test_the_index_of_a_file_is_deleted_with_it(tmp_path):
    """It is no orphan as long as the file exists."""
    clock, batch_id = ManualClock(), "batch_" + "0" * 32
    async with open_dependencies(tmp_path, clock) as deps:
        for kind in ("output", "output-00002", "errors"):
            file_id = ids.derived_file_id(batch_id, kind)
            file = File(id=file_id, bytes=1, created_at=1, filename="f", purpose="batch_output")
            deps.view.put_file(FileRecord(project="p", file=file, key=file_key(file_id), sha256=""), -1)
            await deps.store.write(index_key(file_key(file_id)), content())
        errors, second = (file_key(ids.derived_file_id(batch_id, kind)) for kind in ("errors", "output-00002"))
        await file_removal.remove(deps, ids.derived_file_id(batch_id, "errors"), file_key("x"))
        assert await file_removal.collect_orphans(deps) == 0
        clock.now += ORPHAN_SECONDS_MIN
        assert await file_removal.collect_orphans(deps) == 1
        assert not await is_stored(deps, index_key(errors))
        assert await is_stored(deps, index_key(second))


async def test_uploads_expire_after_an_hour(tmp_path):
    """They take no more parts; their bytes go after a grace period, their records a day later."""
    clock = ManualClock()
    async with open_dependencies(tmp_path, clock) as deps, client_of(deps) as client:
        begin = {"filename": "f", "purpose": "batch", "bytes": len(LINE), "mime_type": "text/plain"}
        upload_id = (await client.post("/uploads", json=begin)).json()["id"]
        path = f"/uploads/{upload_id}"
        part = (await client.post(f"{path}/parts", files={"data": ("f", LINE)})).json()
        key = f"uploads/{upload_id}/{part['id']}"
        clock.now += 3600
        late = await client.post(f"{path}/parts", files={"data": ("f", LINE)})
        assert (late.status_code, "'expired'" in late.text) == (400, True)
        late = await client.post(f"{path}/complete", json={"part_ids": [part["id"]]})
        assert (late.status_code, "'expired'" in late.text) == (400, True)
        await file_removal.sweep(deps)
        assert await is_stored(deps, key)
        clock.now += GRACE_SECONDS
        await file_removal.sweep(deps)
        assert not await is_stored(deps, key)
        assert deps.log.records[-1] == (topics.UPLOADS.name, f"{upload_id}/{part['id']}", None)
        assert (await client.post(f"{path}/cancel")).status_code == 400
        clock.now += KEPT_SECONDS
        await file_removal.sweep(deps)
        assert deps.log.records[-1] == (topics.UPLOADS.name, upload_id, None)
        assert (await client.post(f"{path}/cancel")).status_code == 404


async def test_uploads_belong_to_a_project(deps):
    """Another project's upload does not exist."""
    begin = {"filename": "f", "purpose": "batch", "bytes": 1, "mime_type": "text/plain"}
    async with client_of(deps) as client, client_of(deps, "key-of-q") as other:
        made = await client.post("/uploads", json=begin)
        for step in ("parts", "complete", "cancel"):
            answer = await other.post(f"/uploads/{made.json()['id']}/{step}", json={"part_ids": ["part_x"]})
            assert (answer.status_code, answer.json()["error"]["param"]) == (404, "upload_id")


async def test_an_input_lives_as_long_as_the_settings_say(deps):
    """Unless the request wants another time; files of other purposes stay for good."""
    lived = replace(deps, settings=deps.settings.model_copy(update={"input_life_seconds": 100 * 86_400}))
    wish = {"anchor": "created_at", "seconds": 3_600}
    async with client_of(lived) as client:
        for purpose, form, body, life in (
            ("batch", {}, {}, 100 * 86_400),
            ("batch", {"expires_after": orjson.dumps(wish).decode()}, {"expires_after": wish}, 3_600),
            ("evals", {}, {}, None),
        ):
            data, files = {"purpose": purpose, **form}, {"file": ("f", LINE)}
            made = (await client.post("/files", data=data, files=files)).json()
            fields = {"purpose": purpose, "filename": "f", "bytes": len(LINE), "mime_type": "text/jsonl"}
            begun = (await client.post("/uploads", json=fields | body)).json()
            part = (await client.post(f"/uploads/{begun['id']}/parts", files={"data": LINE})).json()
            done = await client.post(f"/uploads/{begun['id']}/complete", json={"part_ids": [part["id"]]})
            for file in (made, done.json()["file"]):
                assert file["expires_at"] == (None if life is None else NOW + life)
        too_long = orjson.dumps(wish | {"seconds": 2_592_001}).decode()
        data = {"purpose": "batch", "expires_after": too_long}
        assert (await client.post("/files", data=data, files={"file": ("f", LINE)})).status_code == 400
