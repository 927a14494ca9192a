"""Deletions by sweeps, with a real view and a real folder; the log is a list."""

import asyncio
import functools
from dataclasses import replace

import pytest
from support import hostile
from support.dependencies import ADMIN, NOW, batch_of, client_of, open_dependencies, with_settings
from support.waiting import until

from tidemill import metrics
from tidemill.api.batches import file_removal
from tidemill.api.dependencies import Dependencies
from tidemill.api.view.batch_tables import PROMISE_SECONDS_MAX
from tidemill.api.view.orphans import ORPHAN_SECONDS_MIN
from tidemill.configuration.settings import Settings
from tidemill.kafka.connection import LogUnavailable
from tidemill.quotas import Quota
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchCreated, BatchRecord, Claim, DeleteRequested, FileRecord, InputRef
from tidemill.schemas.ports import NotFound, once
from tidemill.schemas.resources.batch import Status
from tidemill.schemas.resources.file import File
from tidemill.sealing.vault import Vault
from tidemill.sealing.wrapping import FileWrapper, new_key_text
from tidemill.storage.owner import CONTESTED, FOREIGN, KEY, MISSING, UNCHECKED, Origin, StoreOwner


@pytest.fixture(params=["alone", "beside a hostile project"], autouse=True)
def others(request, monkeypatch):
    """What is deleted does not depend on other projects."""
    if request.param != "alone":
        hostile.intrude(monkeypatch)


@pytest.fixture
async def deps(tmp_path):
    """Dependencies on a folder, with the files `f` and `g` that expire at `NOW`."""
    async with open_dependencies(tmp_path) as deps:
        for name in ("f", "g"):
            await make(deps, name, -1, expires_at=NOW)
        yield deps


async def make(deps: Dependencies, name: str, place: int, *, expires_at: int, from_body: bool = False) -> None:
    """Write a file whose record is at this place in the log."""
    await deps.store.write(f"files/{name}", once(b"x"))
    file = File(id=name, bytes=1, created_at=1, expires_at=expires_at, filename="f", purpose="batch")
    record = FileRecord(project="p", file=file, key=f"files/{name}", sha256="0" * 64, from_body=from_body)
    deps.view.put_file(record, place)


async def is_stored(deps: Dependencies, name: str) -> bool:
    """Whether the store has a file's bytes."""
    try:
        return await deps.store.size(f"files/{name}") > 0
    except NotFound:
        return False


def batch(status: Status, name: str = "f") -> BatchRecord:
    """A batch that reads `f`, or another file."""
    return BatchRecord(
        project="p",
        batch=batch_of(f"batch_{name}", input_file_id=name, status=status, created_at=1, expires_at=2),
    )  # fmt: skip


async def test_a_sweep_deletes_expired_files(deps):
    """Their records, rows and bytes; a second sweep finds none."""
    assert (await file_removal.sweep(deps)).found == 2
    assert sorted(deps.log.records) == [(topics.FILES.name, "f", None), (topics.FILES.name, "g", None)]
    assert not await is_stored(deps, "f")
    assert (await file_removal.sweep(deps)).found == 0


async def test_bytes_that_a_batch_reads_stay_until_its_end(deps):
    """Though its owner no longer sees the file."""
    deps.view.put_batch(batch(Status.IN_PROGRESS))
    await file_removal.sweep(deps)
    assert (await is_stored(deps, "f"), await is_stored(deps, "g")) == (True, False)
    deps.view.put_batch(batch(Status.COMPLETED))
    await file_removal.sweep(deps)
    assert not await is_stored(deps, "f")


def claimed(project: str, at: int, name: str = "f") -> tuple[str, str, bytes]:
    """The claim of a batch that another process creates of a file, as a record that this one has not read."""
    new = batch(Status.VALIDATING, name).batch.model_copy(update={"id": "batch_new", "created_at": at})
    command = BatchCreated(project=project, batch=new, input=InputRef(key=f"files/{name}", bytes=1))
    return topics.CLAIMS.name, new.id, codec.encode(Claim(command=command, fingerprint="x", is_retry=False))


@pytest.mark.parametrize(
    ("project", "age", "kept"), [("p", 0, True), ("p", PROMISE_SECONDS_MAX, False), ("q", 0, False)]
)
async def test_bytes_stay_for_a_batch_that_another_process_has_just_created(deps, project, age, kept):
    """Results has not published the batch yet, so that its claim alone shows it; others' claims do not count."""
    deps.log.unread.append(claimed(project, NOW - age))
    await file_removal.remove(deps, "f", "files/f")
    assert deps.view.file("p", "f") is None
    await file_removal.sweep(deps)
    assert await is_stored(deps, "f") is kept
    if kept:
        ended = batch(Status.FAILED).batch.model_copy(update={"id": "batch_new"})
        deps.view.put_batch(BatchRecord(project="p", batch=ended))
        await file_removal.sweep(deps)
        assert not await is_stored(deps, "f")


async def test_bytes_stay_while_this_process_does_not_read_the_log(deps):
    """Its tombstone is in the log; a later sweep deletes them."""

    async def behind(*_: str) -> None:
        raise LogUnavailable

    lagging = replace(deps, reading=replace(deps.reading, catch_up=behind))
    await file_removal.remove(lagging, "f", "files/f")
    with pytest.raises(LogUnavailable):
        await file_removal.sweep(lagging)
    assert (deps.view.file("p", "f"), await is_stored(deps, "f")) == (None, True)
    await file_removal.sweep(deps)
    assert not await is_stored(deps, "f")


async def test_an_input_from_a_body_stays_for_a_rerun_that_another_process_has_just_created(deps):
    """Only its claim shows the rerun."""
    await make(deps, "h", -1, expires_at=NOW + 1, from_body=True)
    deps.view.put_batch(batch(Status.COMPLETED, "h"))
    deps.log.unread.append(claimed("p", NOW, "h"))
    await file_removal.remove_batch(deps, "p", batch(Status.COMPLETED, "h").batch)
    assert deps.view.file("p", "h") is not None
    assert await is_stored(deps, "h")


async def test_a_file_stays_while_the_log_is_away(deps):
    """Nothing is deleted without a record."""
    deps.log.away = True
    with pytest.raises(LogUnavailable):
        await file_removal.sweep(deps)
    assert await is_stored(deps, "f")
    deps.log.away = False
    assert (await file_removal.sweep(deps)).found == 2


@pytest.mark.parametrize("name", ["f", "g"])
async def test_an_expired_file_that_is_made_again_during_a_sweep_stays(deps, monkeypatch, name):
    """Under the same id, while the log takes its tombstone or that of the file before it."""
    send = deps.log.send

    async def sent(*args, **kwargs):
        offset = await send(*args, **kwargs)
        if offset == 0:
            await make(deps, name, 1, expires_at=NOW + 1)
        return offset

    monkeypatch.setattr(deps.log, "send", sent)
    await file_removal.sweep(deps)
    assert await is_stored(deps, name)
    assert deps.view.file("p", name) is not None
    assert (topics.FILES.name, "g", None) in deps.log.records or name == "g"
    assert (await file_removal.sweep(deps)).found == 0


async def test_a_deleted_file_that_is_made_again_during_a_sweep_stays(deps, monkeypatch):
    """While the store deletes the bytes of another one that a batch held as well."""
    for status in (Status.IN_PROGRESS, Status.COMPLETED):
        for name in ("f", "g"):
            deps.view.put_batch(batch(status, name))
        if status is Status.IN_PROGRESS:
            await file_removal.sweep(deps)
    delete = deps.store.delete

    async def deleted(key):
        await delete(key)
        if key == "files/f":
            await make(deps, "g", 10, expires_at=NOW + 1)

    monkeypatch.setattr(deps.store, "delete", deleted)
    await file_removal.sweep(deps)
    assert (await is_stored(deps, "f"), await is_stored(deps, "g")) == (False, True)
    assert deps.view.file("p", "g") is not None


async def test_the_keys_of_ended_batches_end_with_their_input(deps, tmp_path):
    """Those of a running batch stay until its end; so does the share of the quota that the bytes take."""
    (tmp_path / "keys").write_text(new_key_text())
    vault = Vault(deps.log, wrapper=FileWrapper(tmp_path / "keys"), seals=True)
    deps = replace(deps, vault=vault)
    for name, status in (("f", Status.IN_PROGRESS), ("g", Status.COMPLETED)):
        await vault.sealing_cipher(f"batch_{name}", "p")
        deps.view.put_batch(batch(status, name))
        await file_removal.remove(deps, name, f"files/{name}")
    assert (vault.has_key("batch_f"), vault.has_key("batch_g")) == (True, False)
    assert deps.view.quotas.held("p", Quota.FILES) == 1
    deps.view.put_batch(batch(Status.COMPLETED))
    await file_removal.sweep(deps)
    assert not vault.has_key("batch_f")
    assert deps.view.quotas.held("p", Quota.FILES) == 0


async def test_an_input_from_a_body_goes_with_the_last_of_its_batches(deps):
    """It has no other owner."""
    await make(deps, "h", -1, expires_at=NOW + 1, from_body=True)
    first, rerun = batch(Status.COMPLETED, "h"), batch(Status.COMPLETED, "h")
    rerun = rerun.model_copy(update={"batch": rerun.batch.model_copy(update={"id": "batch_rerun"})})
    for record in (first, rerun):
        deps.view.put_batch(record)
    await file_removal.remove_batch(deps, "p", first.batch)
    assert await is_stored(deps, "h")
    await file_removal.remove_batch(deps, "p", rerun.batch)
    assert not await is_stored(deps, "h")


async def test_a_discarded_input_is_deleted_later_if_the_store_fails(deps):
    """No batch has it, so no other deletion would find its bytes."""

    async def fail(_):
        raise OSError("down")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deps.store, "delete", fail)
        await file_removal.discard(deps, "f", "files/f")
    assert await is_stored(deps, "f")
    assert deps.view.file("p", "f") is None
    await file_removal.sweep(deps)
    assert not await is_stored(deps, "f")
    assert not deps.view.is_held("f")
    await make(deps, "h", -1, expires_at=NOW + 99)
    await file_removal.discard(deps, "h", "files/h")
    assert not deps.view.is_held("h")


@pytest.mark.parametrize("change", ["another log", "an older log", "no mount"])
async def test_a_log_that_does_not_own_the_store_deletes_nothing(deps, change):
    """Neither what it does not know, nor what it knows: a copy of the installation has the same records."""
    await deps.owner.check(marks=True)
    if change == "another log":
        deps.log.identity = "other/files"
    elif change == "an older log":
        origin = Origin(deps.log.identity, 9)
        await StoreOwner(deps.store, functools.partial(asyncio.sleep, 0, origin), list).check(marks=True)
    else:
        await make(deps, "lost", -1, expires_at=2 * NOW)
        for key in (KEY, "files/lost"):
            await deps.store.delete(key)
    await deps.owner.check(marks=True)
    await deps.store.write("files/stray", once(b"x"))
    deps.view.orphans.track(["files/stray"])
    later = replace(deps, clock=lambda: NOW + ORPHAN_SECONDS_MIN)
    deps.view.orphans._clock = later.clock
    await later.owner.check(marks=True)
    await file_removal.sweep(later)
    assert await file_removal.collect_orphans(later) == 0
    assert [await is_stored(deps, name) for name in ("f", "g", "stray")] == [True] * 3
    await deps.store.write(KEY, once(b""))
    await later.owner.check(marks=True)
    await file_removal.sweep(later)
    assert await file_removal.collect_orphans(later) == 0, "it begins to wait for a day"
    assert [await is_stored(deps, name) for name in ("f", "g", "stray")] == [False, False, True]


async def test_a_store_of_another_log_takes_no_upload(deps):
    """Reads go on; an older copy of the log writes, too."""
    async with client_of(deps) as client:

        async def status() -> int:
            await deps.owner.check(marks=True)
            upload = {"file": ("f", b"{}"), "purpose": (None, "batch")}
            assert (await client.get("/files")).status_code == 200
            answer = await client.post("/files", files=upload)
            if answer.status_code == 503:
                assert "cannot be used: the store belongs to another log. Its operator" in answer.text
            return answer.status_code

        assert await status() == 200
        deps.log.identity = "other/files"
        assert await status() == 503
        deps.log.identity = "cluster/files"
        deps.log.records.clear()
        assert await status() == 200


@pytest.mark.parametrize("fault", [UNCHECKED, MISSING, FOREIGN, CONTESTED])
async def test_what_needs_no_store_works_without_it(deps, fault):
    """Keys, webhooks and cancels; no batch is deleted, neither on request nor for its age."""
    deps = with_settings(deps, Settings(batch_life_seconds=3600))
    deps.owner.fault = fault
    ended = batch(Status.COMPLETED)
    ended = ended.model_copy(update={"batch": ended.batch.model_copy(update={"completed_at": 2})})
    running = batch(Status.IN_PROGRESS, "g")
    running = running.model_copy(update={"batch": running.batch.model_copy(update={"expires_at": NOW + 99})})
    for record in (running, ended):
        deps.view.put_batch(record)
    body = {"endpoint": "/v1/embeddings", "input_file_id": "g", "completion_window": "24h"}
    hook = {"name": "h", "url": "https://example.com/", "event_types": ["batch.completed"]}
    async with client_of(deps) as client, client_of(deps, ADMIN) as admin:
        key = await admin.post("/admin/keys", json={"name": "k", "project": "p"})
        assert key.status_code == 200
        assert (await admin.delete(f"/admin/keys/{key.json()['id']}")).status_code == 200
        assert (await client.post("/webhook_endpoints", json=hook)).status_code == 200
        assert (await client.post("/batches/batch_g/cancel")).status_code == 200
        assert (await client.delete("/batches/batch_f")).status_code == 503
        stored = [
            await client.post("/files", files={"file": ("f", b"{}"), "purpose": (None, "batch")}),
            await client.post("/batches", json=body),
            await client.delete("/files/g"),
        ]
    assert [each.status_code == 503 for each in stored] == [fault.is_foreign] * 3
    await file_removal.sweep(deps)
    commands = [
        codec.decode_command(value) for topic, _, value in deps.log.records if topic == topics.COMMANDS.name
    ]
    assert not [command for command in commands if isinstance(command, DeleteRequested)]
    deps.owner.fault = None
    await file_removal.sweep(deps)
    assert deps.view.erasures.is_deleted("p", "batch_f")


async def test_a_scrape_shows_whether_the_store_is_of_another_log(deps):
    """The readiness of the chart leaves the store out, so an alert reads the metric."""
    await deps.owner.check(marks=True)
    for identity, shown in (("other/files", 1), ("cluster/files", 0)):
        deps.log.identity = identity
        sweeping = asyncio.create_task(file_removal.sweep_forever(deps))
        try:
            await until(functools.partial(is_scraped, b"tidemill_store_foreign %d.0\n" % shown), "the metric")
        finally:
            sweeping.cancel()


def is_scraped(line: bytes) -> bool:
    """Whether the metrics have a line."""
    return line in metrics.text()[0]


class Time:
    """A wall clock beside a monotonic one."""

    def __init__(self, wall: float) -> None:
        self.seconds = 0.0
        self.ahead = wall

    def clock(self) -> float:
        """Unix time."""
        return self.seconds + self.ahead

    def monotonic(self) -> float:
        """Seconds."""
        return self.seconds


async def test_a_clock_that_is_ahead_for_a_while_deletes_nothing(tmp_path):
    """Files come back with the right time; a clock that stays ahead counts after an hour."""
    now = Time(NOW - 3600.0)
    async with open_dependencies(tmp_path, clock=now.clock) as deps:
        for name, life in (("f", 1800), ("g", 30 * 86_400), ("h", 86_400)):
            await make(deps, name, -1, expires_at=NOW + life)
        sweeps = file_removal.Sweeps(deps, now.monotonic)
        deps.view.drop_file("h", -1)  # on request
        deps.view.hold("h", holds=True)

        async def pass_(seconds: float) -> list[str]:
            for _ in range(int(seconds / file_removal.ROUND_SECONDS)):
                now.seconds += file_removal.ROUND_SECONDS
                await sweeps.round()
            return [name for name in ("f", "g", "h") if await is_stored(deps, name)]

        assert await pass_(1800) == ["f", "g"]
        now.ahead += 60 * 86_400
        assert await pass_(1800) == ["f", "g"]
        now.ahead -= 60 * 86_400
        assert await pass_(1200) == ["f", "g"]
        assert await pass_(2400) == ["g"]
        now.ahead += 60 * 86_400
        assert await pass_(3500) == ["g"]
        assert await pass_(300) == []


async def test_orphans_are_collected_each_hour_whatever_the_clock_says(tmp_path, monkeypatch):
    """Also after it was ahead for a day."""
    now, found = Time(NOW), []

    async def collect(_: Dependencies) -> int:
        found.append(now.seconds)
        return 0

    monkeypatch.setattr(file_removal, "collect_orphans", collect)
    async with open_dependencies(tmp_path, clock=now.clock) as deps:
        sweeps = file_removal.Sweeps(deps, now.monotonic)
        now.seconds += 3600
        now.ahead += 86_400
        await sweeps.round()
        for _ in range(4):
            now.seconds += 3600
            await sweeps.round()
            now.ahead = NOW
        assert len(found) == 4
