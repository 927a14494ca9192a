"""Copies of results in a bucket of users at a real S3 server."""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.lake import NOW, SECRET, URL, lines
from support.waiting import WAIT_SECONDS_MAX

from tidemill import retrying
from tidemill.results.files.bucket_copy import REFUSALS_MAX, SECONDS_MAX, TRY_SECONDS_MAX, BucketCopier
from tidemill.results.resources import Owner, Resources
from tidemill.results.state.active_batch import ActiveBatch
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.results.state.reducer import State
from tidemill.schemas import buckets, ids
from tidemill.schemas.buckets import OutputCopy
from tidemill.schemas.log.messages import Compacted
from tidemill.schemas.log.part import file_key
from tidemill.schemas.resources.batch import Batch, Extras, FileReceipt, Receipt, Status, Usage
from tidemill.schemas.resources.bill import Tariff, bill
from tidemill.schemas.resources.by_model import ModelResult
from tidemill.schemas.resources.waiting import Reason
from tidemill.storage.buckets import SHA256, Buckets
from tidemill.storage.directory import DirectoryStore
from tidemill.storage.s3 import PART_BYTES
from tidemill.storage.s3_errors import Refused, Unavailable


async def chunks_of(data: bytes) -> AsyncIterator[bytes]:
    """The data in pieces."""
    for start in range(0, len(data), 1 << 20):
        yield data[start : start + (1 << 20)]


async def test_a_copy_is_whole_or_not_there(lake):
    """Uploads that a dead process left are aborted; the digest tells whether a copy is there already."""
    store = lake.opened(lake.settings()).find(
        "p", buckets.parse_object(f"{lake.address}/out/batch_1/output.jsonl"), writes=True
    )
    key, data = "out/batch_1/output.jsonl", bytes(2 * PART_BYTES + 5)
    await lake.client.create_multipart_upload(Bucket=lake.name, Key=key)
    beside = await lake.client.create_multipart_upload(Bucket=lake.name, Key=f"{key}.other")
    digest = hashlib.sha256(data).hexdigest()
    assert not await store.has(key, digest)
    await store.put(key, chunks_of(data), digest)
    assert await store.has(key, digest)
    assert not await store.has(key, "0" * 64)
    found = await lake.client.get_object(Bucket=lake.name, Key=key)
    assert (await found["Body"].read() == data, found["Metadata"]) == (True, {SHA256: digest})
    uploads = (await lake.client.list_multipart_uploads(Bucket=lake.name)).get("Uploads", [])
    assert [each["UploadId"] for each in uploads] == [beside["UploadId"]]


MODEL = ModelResult(model="m", completed=9_000, failed=2, usage=Usage(), bill=bill(0, 0, Tariff()))


class Copies:
    """A batch whose two files are written, and results' copier."""

    def __init__(self, folder: Path, found: Buckets, uri: str, output_format: str | None = None) -> None:
        self.store = DirectoryStore(folder)
        self.data = {"output": lines(9_000), "errors": lines(2)}
        self.now, self.step, self.waits, self.lost_at = float(NOW), 0.0, [], 0
        self._held = 0
        batch = Batch(
            id="batch_1", endpoint=URL, input_file_id="file-x", completion_window="24h", status=Status.FINALIZING,
            created_at=NOW, finalizing_at=NOW, expires_at=NOW + 86_400,
            tidemill=Extras(output_uri=uri, output_format=output_format),
        )  # fmt: skip
        self.state = State(id="batch_1", partition=0, project="p", batch=batch, ending=Status.COMPLETED)
        resources = Resources(
            sender=None, history=None, store=self.store, clock=self.clock, monotonic=self.clock, limits=None,
            compactions=asyncio.Semaphore(1), buckets=found, wake=None,
        )  # fmt: skip
        self.copier = BucketCopier(resources, Owner(writer="w", generation=1, confirm=self.held))

    def clock(self) -> float:
        """A time that goes on with each look."""
        self.now += self.step
        return self.now

    async def held(self) -> None:
        """The process owns the partition, until it has been asked `lost_at` times."""
        self._held += 1
        if self._held == self.lost_at:
            raise asyncio.CancelledError

    async def copy(self) -> OutputCopy:
        """Copy the files."""
        receipts = {}
        for kind, data in self.data.items():
            await self.store.write(file_key(ids.derived_file_id("batch_1", kind), "w"), chunks_of(data))
            digest = hashlib.sha256(data).hexdigest()
            receipts[kind] = FileReceipt(lines=data.count(b"\n"), bytes=len(data), sha256=digest)
        fact = Compacted(
            batch_id="batch_1", receipt=Receipt(lines=9_002, **receipts), models=(MODEL,), writer="w", at=NOW
        )
        active = ActiveBatch(state=self.state, bitmap=LineBitmap())
        return (
            await self.copier.copy(active, self.state, fact, lambda *wait: self.waits.append(wait))
        ).output_copy


async def test_a_repeated_copy_changes_nothing(lake, tmp_path):
    """Each object is written once; the receipt is the last."""
    copies = Copies(tmp_path, lake.opened(lake.settings()), f"{lake.address}/out/day")
    assert await copies.copy() == OutputCopy(status="done", uri=f"{lake.address}/out/day/batch_1", files=2)
    first = await lake.client.list_objects_v2(Bucket=lake.name)
    names = ["errors.jsonl", "output.jsonl", "receipt.json"]
    assert [each["Key"] for each in first["Contents"]] == [f"out/day/batch_1/{name}" for name in names]
    newest = max(first["Contents"], key=lambda each: each["LastModified"])
    assert newest["LastModified"] == first["Contents"][2]["LastModified"]
    await copies.copy()
    again = await lake.client.list_objects_v2(Bucket=lake.name)
    assert [each["LastModified"] for each in again["Contents"]] == [
        each["LastModified"] for each in first["Contents"]
    ]


async def test_a_process_that_lost_its_partition_completes_no_object(lake, tmp_path):
    """It asks before the last bytes of each."""
    copies = Copies(tmp_path, lake.opened(lake.settings()), f"{lake.address}/out")
    copies.lost_at = 2
    with pytest.raises(asyncio.CancelledError):
        await copies.copy()
    assert await lake.keys() == []


async def test_a_copy_is_given_up_after_an_hour(lake, tmp_path, monkeypatch):
    """Until then the batch says why it waits; a folder that is no longer allowed fails at once.

    A machine that sleeps between two attempts does not try meanwhile.
    """
    monkeypatch.setattr(retrying, "LONGEST_SECONDS", 0.01)
    down = Copies(
        tmp_path / "down", lake.opened(lake.settings(endpoint="http://127.0.0.1:9")), f"{lake.address}/out"
    )
    down.step = 8 * SECONDS_MAX
    done = await down.copy()
    assert (done.status, len(down.waits)) == ("failed", SECONDS_MAX / TRY_SECONDS_MAX - 1)
    assert "does not answer" in done.reason
    assert (down.waits[0][0], "does not answer" in down.waits[0][1]) == (Reason.BUCKET, True)
    closed = Copies(tmp_path / "closed", lake.opened(lake.settings()), f"{lake.address}/in")
    done = await closed.copy()
    assert (done.status, closed.waits) == ("failed", [])
    assert "may only write to" in done.reason


async def test_a_server_that_refuses_ends_the_wait(lake, tmp_path, monkeypatch):
    """After some refusals in a row; nothing is written."""
    monkeypatch.setattr(retrying, "LONGEST_SECONDS", 0.01)
    monkeypatch.setenv(SECRET, "another")
    copies = Copies(tmp_path, lake.opened(lake.settings()), f"{lake.address}/out")
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        done = await copies.copy()
    assert (done.status, len(copies.waits)) == ("failed", REFUSALS_MAX - 1)
    assert "refuses" in done.reason
    assert await lake.keys() == []


async def test_a_fault_of_a_conversion_ends_the_copy_alone(lake, tmp_path, monkeypatch):
    """The batch keeps its end and its files."""

    async def broken(_: object) -> AsyncIterator[bytes]:
        raise ZeroDivisionError
        yield b""

    monkeypatch.setattr("tidemill.tables.result_lines.converted", broken)
    copies = Copies(tmp_path, lake.opened(lake.settings()), f"{lake.address}/out", "parquet")
    done = await copies.copy()
    assert (done.status, "ZeroDivisionError" in done.reason) == ("failed", True)
    assert await lake.keys() == []


@pytest.mark.parametrize("fault", [Refused("ExpiredToken"), Unavailable("S3 answered 503")])
async def test_a_fault_of_the_own_store_is_waited_for(lake, tmp_path, monkeypatch, fault):
    """However often it fails: it says nothing of the bucket."""
    monkeypatch.setattr(retrying, "LONGEST_SECONDS", 0.01)
    copies = Copies(tmp_path, lake.opened(lake.settings()), f"{lake.address}/out")
    read, refusals = copies.store.read, iter(range(2 * REFUSALS_MAX))

    async def refuse(key: str) -> AsyncIterator[bytes]:
        if next(refusals, None) is not None:
            raise fault
        async for chunk in read(key):
            yield chunk

    monkeypatch.setattr(copies.store, "read", refuse)
    done = await copies.copy()
    assert done.status == "done"
    assert (copies.waits[0][0], "own store" in copies.waits[0][1]) == (Reason.STORE, True)


async def test_without_its_library_a_conversion_fails_and_says_so(lake, tmp_path, monkeypatch):
    """The api has it, and checks that; an image of the other stages may lack it."""
    monkeypatch.setitem(sys.modules, "tidemill.tables.result_lines", None)
    copies = Copies(tmp_path, lake.opened(lake.settings()), f"{lake.address}/out", "parquet")
    done = await copies.copy()
    assert (done.status, "no pyarrow" in done.reason) == ("failed", True)
    assert await lake.keys() == []
