"""The store in a bucket of S3, or of a server that speaks its language.

Address of the server, region and credentials come from the usual places: `AWS_ENDPOINT_URL`,
`AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, or a role of the machine.

An object of more than one part is put together by the server when all parts are there, so it is whole or not
there. A crash can leave parts that nobody can read; let a lifecycle rule of the bucket abort such uploads.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, closing, contextmanager, suppress
from typing import Any, Final

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError

from tidemill.schemas.object_keys import checked_key, checked_prefix
from tidemill.schemas.ports import READ_BYTES, NotFound

log = logging.getLogger(__name__)

PART_BYTES: Final = 8 << 20
COPY_BYTES_MIN: Final = 5 << 20
"""What a part must have that is not an object's last one."""
COPY_BYTES_MAX: Final = 1 << 30
"""What the server copies in one request; it would take five times that, but slowly."""
PARTS_AT_ONCE_MAX: Final = 2
"""Parts of one object that are on their way: what a writer holds in memory beyond the part it gathers."""
CONNECTIONS_MAX: Final = 64
CONNECT_SECONDS_MAX: Final = 5
SILENCE_SECONDS_MAX: Final = 30
TRIES_MAX: Final = 5
"""Of each request, and of each stretch of a download that brings nothing."""
ABORT_SECONDS_MAX: Final = 10.0
LINK_SECONDS: Final = 900
"""How long a download may be begun from a signed address."""

_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_BEYOND = "InvalidRange"


class S3Store:
    """Objects in a bucket, their keys after a prefix; connects at the first call."""

    def __init__(self, *, bucket: str, prefix: str) -> None:
        """Nothing is connected yet.

        Args:
            bucket: It must exist.
            prefix: What stands before each key, without slashes around it; may be empty.
        """
        self._bucket = bucket
        self._prefix = prefix + "/" if prefix else ""
        self._opened = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._client: Any = None

    async def write(self, key: str, chunks: AsyncIterable[bytes]) -> int:
        """See `Store.write`; an object of up to `PART_BYTES` is one request."""
        where = self._where(key)
        upload = _Upload(await self._connected(), where)
        gathered = bytearray()
        size = 0
        try:
            async for chunk in chunks:
                gathered += chunk
                size += len(chunk)
                while len(gathered) >= PART_BYTES:
                    await upload.add(bytes(gathered[:PART_BYTES]))
                    del gathered[:PART_BYTES]
            await self._finish(upload, where, bytes(gathered))
        except BaseException:
            await upload.abort()
            raise
        return size

    async def join(self, key: str, sources: Sequence[str]) -> int:
        """See `Store.join`; the server copies, and only what is too short for a part comes by here."""
        where = self._where(key)
        upload = _Upload(await self._connected(), where)
        short = bytearray()
        size = 0
        try:
            for source in sources:
                length = await self.size(source)
                size += length
                start = _taken(len(short), length)
                async for chunk in self.read(source, 0, start):
                    short += chunk
                if len(short) >= COPY_BYTES_MIN:
                    await upload.add(bytes(short))
                    short.clear()
                for begin, end in _stretches(start, length):
                    await upload.copy(self._where(source), begin, end)
            await self._finish(upload, where, bytes(short))
        except BaseException:
            await upload.abort()
            raise
        return size

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """See `Store.read`; where the connection breaks, the same object is read on from there."""
        if end is not None and end <= start:
            await self.size(key)
            return
        where = self._where(key)
        failures = 0
        while True:
            try:
                async for chunk in self._stretch(where, start, end):
                    start += len(chunk)
                    failures = 0
                    yield chunk
            except _Broken as error:
                failures += 1
                if failures >= TRIES_MAX:
                    raise OSError(str(error)) from error
            except _Beyond:
                return
            else:
                return

    async def size(self, key: str) -> int:
        """See `Store.size`."""
        where = self._where(key)
        client = await self._connected()
        with _failures(key):
            return int((await client.head_object(**where))["ContentLength"])

    async def link(self, key: str, disposition: str) -> str | None:
        """See `Store.link`; signed, and good for `LINK_SECONDS`."""
        where = self._where(key) | {"ResponseContentDisposition": disposition}
        client = await self._connected()
        with _failures(key):
            return str(await client.generate_presigned_url("get_object", Params=where, ExpiresIn=LINK_SECONDS))

    async def free(self) -> None:
        """None: a bucket has no such number."""

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""
        where = self._where(key)
        client = await self._connected()
        with _failures(key), suppress(NotFound):
            await client.delete_object(**where)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """See `Store.keys`."""
        wanted = self._prefix + checked_prefix(prefix)
        client = await self._connected()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=wanted)
        with _failures(prefix):
            async for page in pages:
                for found in page.get("Contents", ()):
                    yield found["Key"].removeprefix(self._prefix)

    async def close(self) -> None:
        """Close the connections."""
        self._client = None
        await self._opened.aclose()

    async def _finish(self, upload: "_Upload", where: dict[str, str], last: bytes) -> None:
        if upload.is_begun:
            await upload.finish(last)
            return
        client = await self._connected()
        with _failures(where["Key"]):
            await client.put_object(**where, Body=last)

    async def _stretch(self, where: dict[str, str], start: int, end: int | None) -> AsyncIterator[bytes]:
        """One download; from it on, `where` stands for this very object and no other of the same key."""
        client = await self._connected()
        with _failures(where["Key"]):
            answer = await client.get_object(**where, **_range(start, end))
            where["IfMatch"] = answer["ETag"]
            with closing(answer["Body"]) as body:
                async for chunk in body.iter_chunks(READ_BYTES):
                    yield chunk

    def _where(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + checked_key(key)}

    async def _connected(self) -> Any:
        async with self._opening:
            if self._client is None:
                own_server = "AWS_ENDPOINT_URL" in os.environ or "AWS_ENDPOINT_URL_S3" in os.environ
                config = AioConfig(
                    signature_version="s3v4",
                    connect_timeout=CONNECT_SECONDS_MAX,
                    read_timeout=SILENCE_SECONDS_MAX,
                    max_pool_connections=CONNECTIONS_MAX,
                    retries={"mode": "standard", "total_max_attempts": TRIES_MAX},
                    # Other servers than Amazon's know neither buckets as host names nor the newer checksums.
                    s3={"addressing_style": "path" if own_server else "auto"},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                )
                with _failures(""):
                    client = aioboto3.Session().client("s3", config=config)
                    self._client = await self._opened.enter_async_context(client)
            return self._client


class _Upload:
    """An object in parts, from its first part on."""

    def __init__(self, client: Any, where: dict[str, str]) -> None:
        self._client = client
        self._where = where
        self._id: dict[str, str] = {}
        self._parts: list[dict[str, Any]] = []
        self._flying: deque[asyncio.Task[None]] = deque()

    @property
    def is_begun(self) -> bool:
        return bool(self._id)

    async def add(self, part: bytes) -> None:
        """Send a part; waits while too many are on their way."""
        entry = await self._entry()
        self._flying.append(asyncio.create_task(self._send(entry, part)))

    async def copy(self, source: dict[str, str], start: int, end: int) -> None:
        """Have the server take a part from another object; waits as `add` does."""
        entry = await self._entry()
        self._flying.append(asyncio.create_task(self._copy(entry, source, start, end)))

    async def _entry(self) -> dict[str, Any]:
        """The next part's place in the list, once there is room for it on the way."""
        if not self._id:
            with _failures(self._where["Key"]):
                answer = await self._client.create_multipart_upload(**self._where)
            self._id = {"UploadId": answer["UploadId"]}
        while len(self._flying) >= PARTS_AT_ONCE_MAX:
            await self._flying[0]
            self._flying.popleft()
        entry: dict[str, Any] = {"PartNumber": len(self._parts) + 1}
        self._parts.append(entry)
        return entry

    async def finish(self, last: bytes) -> None:
        """Send the rest, and have the object put together."""
        if last:
            await self.add(last)
        while self._flying:
            await self._flying[0]
            self._flying.popleft()
        with _failures(self._where["Key"]):
            await self._client.complete_multipart_upload(
                **self._where, **self._id, MultipartUpload={"Parts": self._parts}
            )

    async def abort(self) -> None:
        """Leave nothing behind, as far as that is possible within `ABORT_SECONDS_MAX`."""
        for task in self._flying:
            task.cancel()
        await asyncio.gather(*self._flying, return_exceptions=True)
        if not self._id:
            return
        try:
            async with asyncio.timeout(ABORT_SECONDS_MAX):
                with _failures(self._where["Key"]), suppress(NotFound):
                    await self._client.abort_multipart_upload(**self._where, **self._id)
        except OSError as error:
            log.warning("parts of an object that was not written stay in the bucket: %s", error)

    async def _send(self, entry: dict[str, Any], part: bytes) -> None:
        with _failures(self._where["Key"]):
            answer = await self._client.upload_part(
                **self._where, **self._id, PartNumber=entry["PartNumber"], Body=part
            )
        entry["ETag"] = answer["ETag"]

    async def _copy(self, entry: dict[str, Any], source: dict[str, str], start: int, end: int) -> None:
        with _failures(source["Key"]):
            answer = await self._client.upload_part_copy(
                **self._where, **self._id, PartNumber=entry["PartNumber"],
                CopySource=source, CopySourceRange=f"bytes={start}-{end - 1}",
            )  # fmt: skip
        entry["ETag"] = answer["CopyPartResult"]["ETag"]


class _Broken(OSError):
    """The server or the way to it failed, which may pass."""


class _Beyond(OSError):
    """A range begins behind the object's end."""


@contextmanager
def _failures(key: str) -> Iterator[None]:
    """Tell the client library's failures as a store does."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MISSING:
            raise NotFound(key) from error
        if code == _BEYOND:
            raise _Beyond(code) from error
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise (_Broken if status >= 500 else OSError)(f"S3 answered {code or status}") from error  # noqa: PLR2004
    except (BotoCoreError, aiohttp.ClientError, TimeoutError) as error:
        raise _Broken(type(error).__name__) from error


def _taken(short: int, length: int) -> int:
    """How many bytes of a source come by here, where so many wait that are too short for a part."""
    if not short and length >= COPY_BYTES_MIN:
        return 0
    needed = COPY_BYTES_MIN - short
    return needed if length - needed >= COPY_BYTES_MIN else length


def _stretches(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Ranges that a server copies in one request each, all of much the same length."""
    count = -(-(end - start) // COPY_BYTES_MAX)
    for number in range(count):
        yield start + (end - start) * number // count, start + (end - start) * (number + 1) // count


def _range(start: int, end: int | None) -> dict[str, str]:
    if end is None:
        return {"Range": f"bytes={start}-"} if start else {}
    return {"Range": f"bytes={start}-{end - 1}"}
