"""Buckets of users at a real S3 server: addresses of creates, and inputs."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.cutter import Cutter
from support.dependencies import client_of, open_dependencies
from support.lake import NOW, SECRET, URL, Lake, lines

from tidemill.configuration.settings import Settings
from tidemill.ingest.files import imports as imports_module
from tidemill.ingest.files.imports import REFUSALS_MAX, Importer
from tidemill.ingest.files.wait_report import WaitReport
from tidemill.ingest.quota import Quotas
from tidemill.ingest.sqlite import Sizes
from tidemill.quotas import Quota, QuotaExceeded
from tidemill.schemas import buckets
from tidemill.schemas.buckets import BucketObject
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import BatchCreated, BatchRecord, FileRecord, InputRef, Stalled
from tidemill.schemas.log.part import file_key
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.batch import Batch, RequestCounts, Status
from tidemill.schemas.resources.waiting import Reason
from tidemill.storage.buckets import BucketRefused, Buckets, BucketUnavailable, Changed, NotAllowed
from tidemill.storage.directory import DirectoryStore
from tidemill.storage.s3_errors import Refused, Unavailable


class Records:
    """The log and the facts of an import; `Importer` sends both."""

    def __init__(self) -> None:
        self.files: list[FileRecord] = []
        self.facts: list[Stalled] = []

    async def send(self, topic: str, key: str, value: bytes, *, headers: Any = ()) -> int:
        """Keep the record of a file."""
        del topic, key, headers
        self.files.append(FileRecord.model_validate_json(value))
        return 0

    async def begin(self, batch_id: str, project: str) -> None:
        """No batch is deleted here."""

    async def send_fact(self, fact: Stalled) -> None:
        """Keep a report."""
        self.facts.append(fact)


class Imports:
    """An importer on a store in a folder."""

    def __init__(self, folder: Path, lake: Lake, settings: Settings) -> None:
        self.store = DirectoryStore(folder / "store")
        self.records = Records()
        sizes = (Sizes(folder / "sizes"), Sizes(folder / "batches"))
        self.quotas = Quotas(settings.limits_of, *sizes)
        self.is_known = False
        self.faults: list[OSError] = []
        """Raised by one attempt each."""
        self.importer = Importer(
            lake.opened(settings), self.store,
            sender=self.records, requests=self.records, room=self.quotas, caught_up=self.caught_up,
        )  # fmt: skip

    async def caught_up(self) -> None:
        """What the project holds is known, once this has returned."""
        if self.faults:
            raise self.faults.pop()
        self.is_known = True

    async def run(self, uri: str, etag: str, size: int, check=lambda: None, *, tries: int = 20):
        """Import an object; returns the code of the batch's fault, None without one. The last try may raise."""
        batch = Batch(
            id="batch_1", endpoint=URL, input_file_id="file-x", completion_window="24h",
            status=Status.VALIDATING, created_at=NOW, expires_at=NOW + 86_400,
        )  # fmt: skip
        ref = InputRef(key="files/file-x", bytes=size, source=BucketObject(uri=uri, etag=etag, bytes=size))
        report = WaitReport(batch.id, self.records, lambda: NOW)
        one = self.importer.of(BatchCreated(project="p", batch=batch, input=ref), report)
        while True:
            tries -= 1
            try:
                failed = await self.importer.run(one, 3600, check)
            except (Refused, BucketUnavailable):
                if not tries:
                    raise
                continue
            return failed and failed.errors[0].code

    async def stored(self) -> bytes:
        """What the store has; empty without the object."""
        try:
            return b"".join([chunk async for chunk in self.store.read("files/file-x")])
        except NotFound:
            return b""


async def test_an_import_copies_counts_and_shows_the_file(lake, tmp_path):
    """A repetition copies nothing: the object may be gone by then."""
    data = lines(30_000)
    etag = await lake.put("in/a b.jsonl", data)
    imports = Imports(tmp_path, lake, lake.settings())
    for _ in range(2):
        assert await imports.run(f"{lake.address}/in/a b.jsonl", etag, len(data)) is None
        await lake.client.delete_object(Bucket=lake.name, Key="in/a b.jsonl")
    assert await imports.stored() == data
    first, second = imports.records.files
    assert first == second
    assert (first.sha256, first.lines, first.file.bytes) == (hashlib.sha256(data).hexdigest(), 30_000, len(data))
    assert (first.file.filename, first.file.purpose, first.from_body) == ("a b.jsonl", "batch", True)
    assert imports.records.facts == []


async def test_a_large_import_says_how_far_it_is(lake, tmp_path, monkeypatch):
    """By a reason of its own, since an operator has nothing to do; the last report takes it back."""
    monkeypatch.setattr(imports_module, "REPORT_SECONDS", 0.0)
    data = lines(30_000)
    etag = await lake.put("in/a", data)
    imports = Imports(tmp_path, lake, lake.settings())
    assert await imports.run(f"{lake.address}/in/a", etag, len(data)) is None
    *reports, last = imports.records.facts
    assert {each.waiting[0].reason for each in reports} == {Reason.IMPORT}
    assert f" of {len(data)} bytes" in reports[0].waiting[0].message
    assert last.waiting == ()


async def test_only_refusals_in_a_row_fail_the_batch(lake, tmp_path):
    """Else a store that refuses now and then would end each import that takes long."""
    data = lines(10)
    etag = await lake.put("in/a", data)
    for others, code in (([BucketUnavailable("S3 answered 503")], None), ([], "input_unavailable")):
        imports = Imports(tmp_path / str(code), lake, lake.settings())
        imports.faults = [BucketRefused("SlowDown"), *others] * REFUSALS_MAX
        assert await imports.run(f"{lake.address}/in/a", etag, len(data)) == code


async def test_an_object_that_changed_or_vanished_fails_the_batch(lake, tmp_path):
    """The version of the create counts, and nothing is left behind."""
    data = lines(10)
    etag = await lake.put("in/a", data)
    imports = Imports(tmp_path, lake, lake.settings())
    await lake.put("in/a", lines(9) + b"x" * (len(data) - len(lines(9))))
    assert await imports.run(f"{lake.address}/in/a", etag, len(data)) == "input_changed"
    assert await imports.run(f"{lake.address}/in/b", etag, len(data)) == "input_changed"
    assert (await imports.stored(), imports.records.files) == (b"", [])


async def test_an_object_that_changes_in_the_middle_fails_the_batch(lake):
    """A download that breaks off goes on with the same version, or not at all."""
    data = lines(100_000)
    etag = await lake.put("in/a", data)
    cutter = Cutter(lake.connection["endpoint"], cuts=2, after_bytes=2 << 20)
    async with cutter as url:
        address = buckets.parse_object(f"{lake.address}/in/a")
        store = lake.opened(lake.settings(endpoint=url)).find("p", address, writes=False)
        assert b"".join([chunk async for chunk in store.version("in/a", etag)]) == data
        cutter.cuts = 1
        reading = store.version("in/a", etag)
        await anext(reading)
        await lake.put("in/a", lines(5))
        with pytest.raises(Changed):
            async for _ in reading:
                pass


async def test_a_refusing_server_fails_the_batch_after_some_tries(lake, tmp_path, monkeypatch):
    """Until then the batch says why it waits."""
    data = lines(3)
    etag = await lake.put("in/a", data)
    monkeypatch.setenv(SECRET, "another")
    imports = Imports(tmp_path, lake, lake.settings())
    assert await imports.run(f"{lake.address}/in/a", etag, len(data)) == "input_unavailable"
    *waits, last = imports.records.facts
    assert len(waits) == 4
    assert all(each.waiting[0].reason is Reason.BUCKET for each in waits)
    assert "refuses" in waits[0].waiting[0].message
    assert last.waiting == ()


async def test_a_server_that_is_down_is_waited_for(lake, tmp_path):
    """The attempt fails, and the batch says why; the stage makes the next one."""
    imports = Imports(tmp_path, lake, lake.settings(endpoint="http://127.0.0.1:9"))
    with pytest.raises(OSError, match="EndpointConnectionError"):
        await imports.run(f"{lake.address}/in/a", '"e"', 5, tries=1)
    (wait,) = imports.records.facts[0].waiting
    assert (wait.reason, "does not answer" in wait.message) == (Reason.BUCKET, True)
    assert await imports.stored() == b""


async def test_the_quotas_of_uploads_hold(lake, tmp_path):
    """Bytes before the copy, lines behind it; what the store has is deleted."""
    data = lines(100)
    etag = await lake.put("in/a", data)
    for limits, code in (({"lines_enqueued_max": 99}, Quota.LINES), ({"bytes_stored_max": 5_000}, Quota.BYTES)):
        settings = lake.settings().model_copy(update={"limits": Settings(limits=limits).limits})
        imports = Imports(tmp_path / code, lake, settings)
        assert await imports.run(f"{lake.address}/in/a", etag, len(data)) == code.value
        assert (await imports.stored(), imports.records.files) == (b"", [])
        imports.quotas.claim_input("p", "file-y", 0)  # nothing stays claimed
        with pytest.raises(QuotaExceeded):
            imports.quotas.claim_input("p", "file-z", 6_000 if code is Quota.BYTES else 1 << 41)


@pytest.mark.parametrize("known", ["batch", "file", "end"])
async def test_a_repeated_import_may_keep_its_lines(lake, tmp_path, known):
    """A record of the batch, or of its file, has come since the first import; the lines count once."""
    data = lines(100)
    etag = await lake.put("in/a", data)
    settings = lake.settings().model_copy(update={"limits": Settings(limits={"lines_enqueued_max": 150}).limits})
    imports = Imports(tmp_path, lake, settings)
    assert await imports.run(f"{lake.address}/in/a", etag, len(data)) is None
    batch = Batch(
        id="batch_1", endpoint=URL, input_file_id="file-x", completion_window="24h", status=Status.IN_PROGRESS,
        created_at=NOW, expires_at=NOW + 86_400, request_counts=RequestCounts(total=100, completed=5, failed=0),
    )  # fmt: skip
    if known != "file":
        imports.quotas.batch("batch_1", codec.encode(BatchRecord(project="p", batch=batch)), 0)
    if known == "end":
        over = batch.model_copy(update={"status": Status.COMPLETED})
        imports.quotas.batch("batch_1", codec.encode(BatchRecord(project="p", batch=over)), 1)
    if known == "file":
        imports.quotas.file("file-x", codec.encode(imports.records.files[0]), 0)
        other = batch.model_copy(update={"id": "batch_2", "input_file_id": "file-y"})
        imports.quotas.batch("batch_2", codec.encode(BatchRecord(project="p", batch=other)), 0)
    sent = len(imports.records.files)
    assert await imports.run(f"{lake.address}/in/a", etag, len(data)) is None
    assert await imports.stored() == data
    # A file that its user has deleted meanwhile must not come back.
    assert len(imports.records.files) == sent + (known == "file")


async def test_quotas_are_read_before_they_count(lake, tmp_path):
    """After a restart a process has read only a part of what the project holds."""
    data = lines(3)
    etag = await lake.put("in/a", data)
    imports = Imports(tmp_path, lake, lake.settings())
    claim = imports.quotas.claim_input

    def claimed(*given):
        assert imports.is_known
        claim(*given)

    imports.quotas.claim_input = claimed
    assert await imports.run(f"{lake.address}/in/a", etag, len(data)) is None


@pytest.mark.parametrize("call", ["size", "write"])
@pytest.mark.parametrize("fault", [Refused("ExpiredToken"), Unavailable("S3 answered 503"), OSError("disk")])
async def test_a_fault_of_the_own_store_says_nothing_of_the_bucket(lake, tmp_path, monkeypatch, call, fault):
    """The import waits for it, and says so."""
    data = lines(3)
    etag = await lake.put("in/a", data)
    imports = Imports(tmp_path, lake, lake.settings())

    async def fail(*_: object) -> int:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(imports.store, call, fail)
        for _ in range(10):
            with pytest.raises(OSError, match="own store: "):
                await imports.run(f"{lake.address}/in/a", etag, len(data))
    (wait,) = imports.records.facts[0].waiting
    assert (wait.reason, "own store" in wait.message) == (Reason.STORE, True)
    assert await imports.run(f"{lake.address}/in/a", etag, len(data)) is None


async def test_a_cancel_stops_an_import(lake, tmp_path):
    """Nothing is left behind."""
    data = lines(30_000)
    etag = await lake.put("in/a", data)

    def stop() -> None:
        raise ZeroDivisionError

    imports = Imports(tmp_path, lake, lake.settings())
    with pytest.raises(ZeroDivisionError):
        await imports.run(f"{lake.address}/in/a", etag, len(data), stop)
    assert (await imports.stored(), imports.records.files) == (b"", [])


def test_an_address_outside_is_refused_before_a_server_is_asked(lake):
    """The refusal names the folders of the project, and knows nothing of what is there."""
    found = Buckets(lake.settings(endpoint="http://127.0.0.1:9").buckets)
    for uri in (f"{lake.address}/out/a", f"{lake.address}x/in/a", f"{lake.address}/inn/a", "s3://other/in/a"):
        with pytest.raises(NotAllowed, match=f"may only read from {lake.address}/in/"):
            found.find("p", buckets.parse_object(uri), writes=False)
    with pytest.raises(NotAllowed, match="'q' may not write to any bucket"):
        found.find("q", buckets.parse_object(f"{lake.address}/out/a"), writes=True)


@pytest.fixture
async def api(lake, tmp_path):
    """An app whose project `p` has the bucket."""
    async with open_dependencies(tmp_path, settings=lake.settings()) as deps, client_of(deps) as client:
        yield client, deps
        await deps.buckets.close()


async def created(client, **fields: Any):
    """Send a create."""
    body = {"endpoint": URL, "completion_window": "24h", **fields}
    return await client.post("/batches", json=body)


async def test_a_create_fixes_the_version_of_its_input(lake, api):
    """The batch has the address; the command has the version, and a file that is not there yet."""
    client, deps = api
    etag = await lake.put("in/a.jsonl", lines(7))
    uri = f"{lake.address}/in/a.jsonl"
    answer = await created(client, input_file_id=uri, output_uri=f"{lake.address}/out/")
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert (shown["status"], shown["tidemill"]["input_uri"], shown["tidemill"]["name"]) == (
        "validating",
        uri,
        "a.jsonl",
    )
    assert shown["tidemill"]["output_uri"] == f"{lake.address}/out"
    command = json.loads(next(value for topic, _, value in deps.log.records if topic == "tidemill.commands"))
    assert command["input"]["source"] == {"uri": uri, "etag": etag, "bytes": len(lines(7))}
    assert command["input"]["key"] == file_key(shown["input_file_id"])
    assert await lake.keys() == ["in/a.jsonl"], "the check of the folder wrote something"
    assert not (await lake.client.list_multipart_uploads(Bucket=lake.name)).get("Uploads")


async def test_a_repeated_create_finds_its_batch(lake, api):
    """Also when the object is gone; another address is another request."""
    client, _ = api
    await lake.put("in/a", lines(7))
    client.headers["idempotency-key"] = "one"
    first = await created(client, input_file_id=f"{lake.address}/in/a")
    await lake.client.delete_object(Bucket=lake.name, Key="in/a")
    again = await created(client, input_file_id=f"{lake.address}/in/a")
    assert again.json() == first.json()
    other = await created(client, input_file_id=f"{lake.address}/in/b")
    assert other.status_code in {400, 409}


async def test_faults_of_addresses_name_their_field(lake, api):
    """Each with a code."""
    client, _ = api
    await lake.put("in/bad", b"no json\n")
    await lake.put("in/empty", b"")
    await lake.put("in/ok", lines(1))
    ok = f"{lake.address}/in/ok"
    for fields, param, code in (
        ({"input_file_id": f"{lake.address}/in/none"}, "input_file_id", "object_not_found"),
        ({"input_file_id": f"{lake.address}/in/bad"}, "input_file_id", "invalid_value"),
        ({"input_file_id": f"{lake.address}/in/empty"}, "input_file_id", "invalid_value"),
        ({"input_file_id": f"{lake.address}/in/../out/x"}, "input_file_id", "invalid_uri"),
        ({"input_file_id": f"{lake.address}/other/x"}, "input_file_id", "uri_not_allowed"),
        ({"input_file_id": ok, "output_uri": f"{lake.address}/in/"}, "output_uri", "uri_not_allowed"),
        ({"input_file_id": ok, "output_uri": "out"}, "output_uri", "invalid_uri"),
        ({"input_file_id": ok, "output_format": "parquet"}, "output_uri", "missing_required_parameter"),
        ({"input_file_id": ok, "output_uri": ok, "output_format": "csv"}, "output_format", "invalid_value"),
        ({"input_file_id": "file/x"}, "input_file_id", "invalid_value"),
    ):
        answer = await created(client, **fields)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, param, code), error


async def test_an_input_may_have_as_many_bytes_as_a_file(lake, tmp_path):
    """One with more is refused at the create."""
    await lake.put("in/a", lines(7))
    settings = lake.settings().model_copy(update={"file_bytes_max": 100})
    async with open_dependencies(tmp_path, settings=settings) as deps, client_of(deps) as client:
        answer = await created(client, input_file_id=f"{lake.address}/in/a")
        assert answer.json()["error"]["code"] == "object_too_large"
        await deps.buckets.close()


async def test_a_server_that_refuses_or_is_down(lake, tmp_path, monkeypatch):
    """The one is a 400 with the field, the other a 503."""
    await lake.put("in/a", lines(7))
    uri = f"{lake.address}/in/a"
    async with open_dependencies(tmp_path / "down", settings=lake.settings(endpoint="http://127.0.0.1:9")) as deps:
        async with client_of(deps) as client:
            down = await created(client, input_file_id=uri)
        await deps.buckets.close()
    monkeypatch.setenv(SECRET, "another")
    async with open_dependencies(tmp_path / "refuses", settings=lake.settings()) as deps:
        async with client_of(deps) as client:
            refused = await created(client, input_file_id=uri)
        await deps.buckets.close()
    assert (down.status_code, refused.status_code) == (503, 400)
    assert refused.json()["error"]["code"] == "bucket_refused"
    assert refused.json()["error"]["param"] == "input_file_id"
