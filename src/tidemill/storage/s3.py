"""The object store in a bucket of S3 or of a compatible server.

The server's address, the region and the credentials come from the usual sources: `AWS_ENDPOINT_URL`,
`AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, or a role of the machine; for a bucket of users
(`buckets.py`) from the settings of its connection.

The server assembles an object from its parts at the end of the upload, so readers see the whole object or none. A
crash can leave parts behind; a lifecycle rule of the bucket should abort such uploads.
"""

import asyncio
import importlib
import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, closing, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from tidemill.schemas.ports import READ_BYTES, NotFound, checked_key, checked_prefix, once
from tidemill.storage.s3_errors import CHANGED, NoUpload, RangeError, Refused, Unavailable, failures

log = logging.getLogger(__name__)

PART_BYTES: Final = 8 << 20
COPY_BYTES_MIN: Final = 5 << 20
"""The least size of a part, except the last one of an object."""
COPY_BYTES_MAX: Final = 1 << 30
"""The most that one request copies; the server accepts five times that, but copies it slowly."""
PARTS_AT_ONCE_MAX: Final = 2
"""Parts of one object in transit; a writer holds them in memory, besides the part that it collects."""
CONNECTIONS_MAX: Final = 64
CONNECT_SECONDS_MAX: Final = 5
SILENCE_SECONDS_MAX: Final = 30
ATTEMPTS_MAX: Final = 5
"""Attempts at each request, and at each part of a download that returns nothing."""
ABORT_SECONDS_MAX: Final = 10.0
LINK_SECONDS: Final = 900
"""How long a signed address can start a download."""

_CONFLICTS: Final = frozenset({"409", "ConditionalRequestConflict"})
"""Codes of a conditional write beside another one of the same key."""
OWN_SERVER: Final = frozenset({"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"})
"""Variables with the address of a server other than Amazon's."""


class S3Store:
    """Objects in a bucket, with their keys after a prefix; connects at the first call."""

    def __init__(self, *, bucket: str, prefix: str, connection: Mapping[str, str] | None = None) -> None:
        """Connect nothing yet; the prefix of all keys has no slashes around it and may be empty.

        `connection` has the arguments of the client that do not come from the usual sources.
        """
        self._connection = connection or {}
        self._bucket = bucket
        self._prefix = prefix + "/" if prefix else ""
        self._opened = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._client: Any = None

    async def write(self, key: str, chunks: AsyncIterable[bytes]) -> int:
        """See `Store.write`; an object of up to `PART_BYTES` is one request."""
        return await self._write(self._where(key), chunks)

    async def create(self, key: str, content: bytes) -> bool:
        """See `Store.create`."""
        client = await self._connected()
        try:
            with failures(key):
                await client.put_object(**self._where(key), Body=content, IfNoneMatch="*")
        except Refused as error:
            if error.code in CHANGED:
                return False
            if error.code in _CONFLICTS:
                raise
            # Servers without conditional writes refuse them with several codes.
            await self.write(key, once(content))
        return True

    async def _write(
        self, where: dict[str, str], chunks: AsyncIterable[bytes], metadata: dict[str, str] | None = None
    ) -> int:
        upload = Upload(await self._connected(), where, metadata)
        collected = bytearray()
        size = 0
        try:
            async for chunk in chunks:
                collected += chunk
                size += len(chunk)
                while len(collected) >= PART_BYTES:
                    await upload.add(bytes(collected[:PART_BYTES]))
                    del collected[:PART_BYTES]
            await self._finish(upload, bytes(collected))
        except BaseException:
            await upload.abort()
            raise
        return size

    async def join(self, key: str, sources: Sequence[str]) -> int:
        """See `Store.join`; the server copies, and only data that is too short for a part passes through here."""
        upload = Upload(await self._connected(), self._where(key))
        short = bytearray()
        size = 0
        try:
            for source in sources:
                length = await self.size(source)
                size += length
                start = _head_bytes(len(short), length)
                async for chunk in self.read(source, 0, start):
                    short += chunk
                if len(short) >= COPY_BYTES_MIN:
                    await upload.add(bytes(short))
                    short.clear()
                for begin, end in _ranges(start, length):
                    await upload.copy(self._where(source), begin, end)
            await self._finish(upload, bytes(short))
        except BaseException:
            await upload.abort()
            raise
        return size

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """See `Store.read`; after a broken connection the read continues with the same object."""
        if end is not None and end <= start:
            await self.size(key)
            return
        async with aclosing(self._read(self._where(key), start, end)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _read(self, where: dict[str, str], start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        failed = 0
        while True:
            try:
                async with aclosing(self._download(where, start, end)) as chunks:
                    async for chunk in chunks:
                        start += len(chunk)
                        failed = 0
                        yield chunk
            except Unavailable as error:
                failed += 1
                if failed >= ATTEMPTS_MAX:
                    raise Unavailable(str(error)) from error
            except RangeError:
                return
            else:
                return

    async def size(self, key: str) -> int:
        """See `Store.size`."""
        where = self._where(key)
        client = await self._connected()
        with failures(key):
            return int((await client.head_object(**where))["ContentLength"])

    async def link(self, key: str, disposition: str) -> str | None:
        """See `Store.link`; signed, and valid for `LINK_SECONDS`."""
        where = self._where(key) | {"ResponseContentDisposition": disposition}
        client = await self._connected()
        with failures(key):
            return str(await client.generate_presigned_url("get_object", Params=where, ExpiresIn=LINK_SECONDS))

    async def free(self) -> None:
        """See `Store.free`; None, since a bucket has no such number."""

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""
        where = self._where(key)
        client = await self._connected()
        with suppress(NotFound), failures(key):
            await client.delete_object(**where)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """See `Store.keys`."""
        wanted = self._prefix + checked_prefix(prefix)
        client = await self._connected()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=wanted)
        with failures(prefix):
            async for page in pages:
                for found in page.get("Contents", ()):
                    yield found["Key"].removeprefix(self._prefix)

    async def close(self) -> None:
        """Close the connections."""
        self._client = None
        await self._opened.aclose()

    async def _finish(self, upload: "Upload", last: bytes) -> None:
        if upload.is_begun:
            await upload.finish(last)
        else:
            await upload.put(last)

    async def _download(self, where: dict[str, str], start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        """One download; afterwards `where` refers to this object only, not to a replacement of the same key."""
        client = await self._connected()
        with failures(where["Key"]):
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
                # These imports take half a second, and only S3 needs them; requests go on meanwhile.
                aioboto3 = await asyncio.to_thread(importlib.import_module, "aioboto3")
                config_module = await asyncio.to_thread(importlib.import_module, "aiobotocore.config")
                own_server = "endpoint_url" in self._connection or not OWN_SERVER.isdisjoint(os.environ)
                config = config_module.AioConfig(
                    signature_version="s3v4",
                    connect_timeout=CONNECT_SECONDS_MAX,
                    read_timeout=SILENCE_SECONDS_MAX,
                    max_pool_connections=CONNECTIONS_MAX,
                    retries={"mode": "standard", "total_max_attempts": ATTEMPTS_MAX},
                    # Servers other than Amazon's support neither buckets as host names nor the newer checksums.
                    s3={"addressing_style": "path" if own_server else "auto"},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                )
                with failures(""):
                    client = aioboto3.Session().client("s3", config=config, **self._connection)
                    self._client = await self._opened.enter_async_context(client)
            return self._client


class Upload:
    """A multipart upload, which the first part creates."""

    def __init__(self, client: Any, where: dict[str, str], metadata: dict[str, str] | None = None) -> None:
        """Send nothing yet; the object gets the metadata."""
        self._client = client
        self._where = where
        self._metadata: dict[str, Any] = {"Metadata": metadata} if metadata else {}
        self._id: dict[str, str] = {}
        self._begun_at: datetime | None = None
        """By the clock of the server."""
        self._size = 0
        self._parts: list[dict[str, Any]] = []
        self._in_transit: deque[asyncio.Task[None]] = deque()

    @property
    def is_begun(self) -> bool:
        """Whether the server has the upload."""
        return bool(self._id)

    async def put(self, content: bytes) -> None:
        """Write the whole object in one request instead."""
        with failures(self._where["Key"]):
            await self._client.put_object(**self._where, **self._metadata, Body=content)

    async def begin(self) -> None:
        """Create it at the server."""
        with failures(self._where["Key"]):
            answer = await self._client.create_multipart_upload(**self._where, **self._metadata)
        self._id = {"UploadId": answer["UploadId"]}
        if date := answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date"):
            self._begun_at = parsedate_to_datetime(date)

    async def add(self, part: bytes) -> None:
        """Send a part; waits while too many are in transit."""
        entry = await self._entry()
        self._size += len(part)
        self._in_transit.append(asyncio.create_task(self._send(entry, part)))

    async def copy(self, source: dict[str, str], start: int, end: int) -> None:
        """Make the server copy a part of another object; waits as `add` does."""
        entry = await self._entry()
        self._size += end - start
        self._in_transit.append(asyncio.create_task(self._copy(entry, source, start, end)))

    async def _entry(self) -> dict[str, Any]:
        """The entry of the next part; waits while too many are in transit."""
        if not self._id:
            await self.begin()
        while len(self._in_transit) >= PARTS_AT_ONCE_MAX:
            await self._in_transit[0]
            self._in_transit.popleft()
        entry: dict[str, Any] = {"PartNumber": len(self._parts) + 1}
        self._parts.append(entry)
        return entry

    async def finish(self, last: bytes) -> None:
        """Send the last part, and complete the object."""
        if last:
            await self.add(last)
        while self._in_transit:
            await self._in_transit[0]
            self._in_transit.popleft()
        try:
            with failures(self._where["Key"]):
                await self._client.complete_multipart_upload(
                    **self._where, **self._id, MultipartUpload={"Parts": self._parts}
                )
        except NoUpload:
            # The client repeats a request whose answer is lost, and the first one may have completed the object.
            if not await self._is_complete():
                raise

    async def _is_complete(self) -> bool:
        """Whether the object is the one of this upload: as long, with its metadata, and not older."""
        with suppress(NotFound), failures(self._where["Key"]):
            found = await self._client.head_object(**self._where)
            return (
                self._begun_at is not None
                and found["LastModified"] >= self._begun_at
                and found["ContentLength"] == self._size
                and self._metadata.get("Metadata", {}).items() <= found.get("Metadata", {}).items()
            )
        return False

    async def abort(self) -> None:
        """Delete the parts, within `ABORT_SECONDS_MAX`."""
        for task in self._in_transit:
            task.cancel()
        await asyncio.gather(*self._in_transit, return_exceptions=True)
        if not self._id:
            return
        try:
            async with asyncio.timeout(ABORT_SECONDS_MAX):
                with suppress(NotFound, NoUpload), failures(self._where["Key"]):
                    await self._client.abort_multipart_upload(**self._where, **self._id)
        except OSError as error:
            log.warning("parts of an aborted upload stay in the bucket: %s", error)

    async def _send(self, entry: dict[str, Any], part: bytes) -> None:
        with failures(self._where["Key"]):
            answer = await self._client.upload_part(
                **self._where, **self._id, PartNumber=entry["PartNumber"], Body=part
            )
        entry["ETag"] = answer["ETag"]

    async def _copy(self, entry: dict[str, Any], source: dict[str, str], start: int, end: int) -> None:
        with failures(source["Key"]):
            answer = await self._client.upload_part_copy(
                **self._where, **self._id, PartNumber=entry["PartNumber"],
                CopySource=source, CopySourceRange=f"bytes={start}-{end - 1}",
            )  # fmt: skip
        entry["ETag"] = answer["CopyPartResult"]["ETag"]


def _head_bytes(short: int, length: int) -> int:
    """How many leading bytes of a source pass through here, after `short` bytes that are too few for a part."""
    if not short and length >= COPY_BYTES_MIN:
        return 0
    needed = COPY_BYTES_MIN - short
    return needed if length - needed >= COPY_BYTES_MIN else length


def _ranges(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Ranges of about the same length for one copy request each."""
    count = -(-(end - start) // COPY_BYTES_MAX)
    for number in range(count):
        yield start + (end - start) * number // count, start + (end - start) * (number + 1) // count


def _range(start: int, end: int | None) -> dict[str, str]:
    if end is None:
        return {"Range": f"bytes={start}-"} if start else {}
    return {"Range": f"bytes={start}-{end - 1}"}
