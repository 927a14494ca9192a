"""Faults that only a store behind a network has."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from urllib.parse import urlsplit

import aioboto3
import aiohttp
import pytest

from tidemill.storage.s3 import COPY_BYTES_MIN, PART_BYTES, S3Store


class Cutter:
    """A way to the server that breaks off the first downloads; an asynchronous context manager."""

    def __init__(self, url: str, *, cuts: int, after_bytes: int) -> None:
        self._host, self._port = urlsplit(url).hostname, urlsplit(url).port
        self.cuts = cuts
        self._after_bytes = after_bytes

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(self._host, self._port)
        pumps = [
            asyncio.create_task(self._pump(reader, forth)),
            asyncio.create_task(self._pump(back, writer, cut=True)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        for side in (writer, forth):
            side.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, cut: bool = False
    ) -> None:
        passed = 0
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
                passed += len(data)
                if cut and self.cuts and passed > self._after_bytes:
                    self.cuts -= 1
                    return


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
