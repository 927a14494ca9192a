"""Faults that only a store behind a network has."""

import secrets
import socket
from collections.abc import AsyncIterator

import aioboto3
import aiohttp
import pyarrow as pa
import pytest
from pyarrow import fs, parquet
from support.cutter import Cutter

from tidemill.client.errors import UsageError
from tidemill.client.http.client import Client
from tidemill.client.maps.job import MapOptions, run
from tidemill.client.maps.output import Totals, check_bucket, write
from tidemill.client.maps.task import embeddings
from tidemill.storage.s3 import COPY_BYTES_MIN, PART_BYTES, S3Store
from tidemill.tables import TableError
from tidemill.tables.columns import FACTS
from tidemill.tables.sources.files import system_of
from tidemill.tables.sources.opening import opened
from tidemill.terminal import Console


@pytest.fixture
async def bucket(s3, monkeypatch) -> str:
    """A bucket without objects."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    name = f"test-{secrets.token_hex(6)}"
    async with aioboto3.Session().client("s3") as client:
        await client.create_bucket(Bucket=name)
    return name


async def parts(size: int) -> AsyncIterator[bytes]:
    """That many bytes of zero."""
    for _ in range(size // 65_536):
        yield bytes(65_536)


async def test_a_download_that_breaks_off_goes_on(s3, bucket, monkeypatch):
    """It resumes at its position, and returns the bytes of the object."""
    data = secrets.token_bytes(3 << 20)

    async def once() -> AsyncIterator[bytes]:
        yield data

    cutter = Cutter(s3["AWS_ENDPOINT_URL"], cuts=2, after_bytes=1 << 20)
    async with cutter as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        store = S3Store(bucket=bucket, prefix="")
        await store.write("cut", once())
        assert b"".join([chunk async for chunk in store.read("cut", 5)]) == data[5:]
        assert cutter.cuts == 0
        await store.close()


@pytest.mark.parametrize("parts_before", [1, 3])
async def test_a_broken_upload_leaves_no_parts(bucket, parts_before):
    """The store aborts the upload, so that the server drops its parts."""

    async def broken() -> AsyncIterator[bytes]:
        async for part in parts(parts_before * PART_BYTES):
            yield part
        raise ConnectionResetError

    store = S3Store(bucket=bucket, prefix="p")
    with pytest.raises(ConnectionResetError):
        await store.write("broken", broken())
    async with aioboto3.Session().client("s3") as client:
        assert not (await client.list_multipart_uploads(Bucket=bucket)).get("Uploads")
        assert not (await client.list_objects_v2(Bucket=bucket)).get("Contents")
    await store.close()


async def test_the_server_copies_what_is_joined(bucket):
    """Each source is a part of the whole; what comes by here is cut into larger ones."""
    store = S3Store(bucket=bucket, prefix="p")
    sources = [f"pieces/{number}" for number in range(3)]
    for source in sources:
        await store.write(source, parts(COPY_BYTES_MIN))
    assert await store.join("joined", sources) == 3 * COPY_BYTES_MIN
    await store.write("written", parts(3 * COPY_BYTES_MIN))
    async with aioboto3.Session().client("s3") as client:
        counts = {}
        for name in ("joined", "written"):
            tag = (await client.head_object(Bucket=bucket, Key=f"p/{name}"))["ETag"]
            counts[name] = int(tag.strip('"').rpartition("-")[2])
        assert not (await client.list_multipart_uploads(Bucket=bucket)).get("Uploads")
    assert counts == {"joined": 3, "written": 2}
    await store.close()


async def test_a_link_is_read_without_credentials(bucket):
    """Whole and in part, with the requested file name; a missing object is a 404."""
    store = S3Store(bucket=bucket, prefix="p")
    await store.write("some/key", parts(131_072))
    link = await store.link("some/key", 'attachment; filename="out.jsonl"')
    missing = await store.link("some/other", "attachment")
    await store.close()
    async with aiohttp.ClientSession() as client:
        async with client.get(link) as answer:
            assert (answer.status, len(await answer.read())) == (200, 131_072)
            assert answer.headers["content-disposition"] == 'attachment; filename="out.jsonl"'
        async with client.get(link, headers={"range": "bytes=10-19"}) as answer:
            assert (answer.status, len(await answer.read())) == (206, 10)
        async with client.get(missing) as answer:
            assert answer.status == 404
        async with client.get(link.replace("Signature=", "Signature=0")) as answer:
            assert answer.status == 403


async def test_a_refusal_is_an_os_error(bucket, monkeypatch):
    """It carries its code, and differs from a missing object."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    store = S3Store(bucket=bucket, prefix="")
    with pytest.raises(OSError, match="SignatureDoesNotMatch"):
        await store.write("x", parts(65_536))
    await store.close()


async def test_objects_lie_under_the_prefix(bucket):
    """Two stores of one bucket do not see each other."""
    one, two = S3Store(bucket=bucket, prefix="one"), S3Store(bucket=bucket, prefix="two")
    await one.write("x", parts(65_536))
    assert [key async for key in one.keys("")] == ["x"]
    assert [key async for key in two.keys("")] == []
    await one.close()
    await two.close()


async def test_tables_lie_in_buckets(bucket, s3, tmp_path):
    """A source is read from there, by its address or a pattern, and an output is written there."""
    table = pa.table({"id": [1, 2, 3], "text": ["a", None, "c"]})
    system, path = system_of(f"s3://{bucket}/in", s3)
    for number in (0, 1):
        with system.open_output_stream(f"{path}/train-0000{number}-of-00002.parquet") as file:
            parquet.write_table(table, file)
    for address in (f"s3://{bucket}/in", f"s3://{bucket}/in/train-*"):
        source = opened(address, s3)
        assert [row for rows in source.read(2) for row in rows.batch.to_pylist()] == [
            *table.to_pylist()[2:],
            *table.to_pylist(),
        ]
    assert opened(address, s3).fingerprint == source.fingerprint
    facts = [field.name for field in FACTS]
    batch = pa.record_batch([pa.nulls(2, field.type) for field in FACTS], names=facts)
    totals = Totals(
        run="r", error="error", input_tokens="input_tokens", output_tokens="output_tokens", cost="cost"
    )
    place = f"s3://{bucket}/out.parquet"
    write(place, tmp_path, lambda: iter([batch]), vector=None, totals=totals, environ=s3)
    assert opened(place, s3).rows == totals.rows == 2
    with pytest.raises(TableError, match="does not exist"):
        opened(f"s3://{bucket}/none.csv", s3)


async def test_an_output_in_a_bucket_is_checked_before_a_row_is_asked(bucket, s3, tmp_path, monkeypatch):
    """It does not exist, and can be written; the check leaves nothing there."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    system, path = system_of(f"s3://{bucket}/out.csv", s3)
    with system.open_output_stream(path) as file:
        file.write(b"id\n")
    (tmp_path / "in.csv").write_text("text\na\n")
    source = opened(str(tmp_path / "in.csv"), {})
    task = embeddings(source, "in.csv", (), model="m", column="text", prompt=None, more={})
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        service = Client(f"http://127.0.0.1:{closed.getsockname()[1]}/v1", "k")
        # The server has no names of 300 characters: the place can be looked at, but not written.
        for name, said in (("out.csv", "--force"), (f"{'x' * 300}.csv", "x.csv: ")):
            with pytest.raises(UsageError, match=said):
                await run(Console(), service, task, MapOptions(output=f"s3://{bucket}/{name}"))
    check_bucket(f"s3://{bucket}/out.csv", s3, force=True)
    check_bucket(f"s3://{bucket}/new.csv", s3, force=False)
    keys = [info.path for info in system.get_file_info(fs.FileSelector(bucket, recursive=True))]
    assert keys == [f"{bucket}/out.csv"]
