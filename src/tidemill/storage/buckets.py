"""Buckets of users: an input is read from one, and output is written to one.

An address is checked against the folders of the project before any server is asked. A reader of a bucket sees a
whole object or none.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from tidemill.configuration.buckets import Bucket
from tidemill.schemas.buckets import Address
from tidemill.schemas.ports import NotFound, Store
from tidemill.storage.s3 import S3Store, Upload
from tidemill.storage.s3_errors import CHANGED, NoUpload, Refused, Unavailable, failures

SHA256: Final = "tidemill-sha256"
"""Metadata of an object: SHA-256 of the file that it has, before any conversion."""
TRANSFERS_MAX: Final = 8
"""Transfers of one process at a time; each one holds up to 24 MiB."""
TRANSFERS_EACH_MAX: Final = 2
"""Transfers of one project over one connection, so that a slow server delays few others."""
SHOWN_MAX: Final = 5
"""Folders that a refusal names."""
_TOTAL: Final = re.compile(r"bytes \d{1,19}-\d{1,19}/(\d{1,19})\Z", re.ASCII)


class NotAllowed(Exception):
    """The project may not use an address; the text names the folders that it may use."""


class Changed(Exception):
    """An object has another version than the requested one."""


class BucketNotFound(NotFound):
    """The object of a bucket, or the bucket, does not exist."""


class BucketRefused(Refused):
    """The server of a bucket refuses a request."""


class BucketUnavailable(Unavailable):
    """The server of a bucket does not answer."""


class OwnStoreError(OSError):
    """The service's own store fails, which says nothing of the bucket; a new attempt may succeed."""


@contextmanager
def own_store() -> Iterator[None]:
    """Raise faults of the service's own store as `OwnStoreError`, and those of the bucket as they are."""
    try:
        yield
    except (BucketNotFound, BucketRefused, BucketUnavailable):
        raise
    except (NotFound, OSError) as error:
        raise OwnStoreError(f"the service's own store: {reason(error)}") from error


async def own_chunks(store: Store, key: str) -> AsyncGenerator[bytes, None]:
    """The bytes of an object of the service's own store, as `Store.read` gives them.

    Raises:
        OwnStoreError: The store fails, or the object does not exist.
    """
    with own_store():
        async with aclosing(store.read(key)) as chunks:
            async for chunk in chunks:
                yield chunk


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The version of an object, and its first bytes."""

    etag: str
    size: int
    first: bytes


class BucketStore(S3Store):
    """A bucket of users, whose keys may have any form."""

    async def opening(self, key: str, count: int) -> Opening:
        """The version of an object and its first `count` bytes, in one request.

        Raises:
            NotFound: The bucket or the object does not exist.
            OSError: The server refuses, or does not answer.
        """
        client = await self._connected()
        with failures(key):
            try:
                answer = await client.get_object(**self._where(key), Range=f"bytes=0-{count - 1}")
            except client.exceptions.ClientError as error:
                if error.response.get("Error", {}).get("Code") != "InvalidRange":
                    raise
                return Opening(etag="", size=0, first=b"")
            first = bytearray()
            with closing(answer["Body"]) as body:
                async for chunk in body.iter_chunks(count):
                    first += chunk
                    if len(first) >= count:
                        break
        total = _TOTAL.match(answer.get("ContentRange", ""))
        # A server that ignores the range sends the whole object.
        size = int(total[1]) if total else int(answer["ContentLength"])
        return Opening(etag=answer["ETag"], size=size, first=bytes(first[:count]))

    async def version(self, key: str, etag: str) -> AsyncIterator[bytes]:
        """The bytes of one version of an object.

        Raises:
            Changed: The object has another version now.
            BucketNotFound: It does not exist any more.
            BucketRefused: The server refuses.
            BucketUnavailable: The server does not answer.
        """
        where = {**self._where(key), "IfMatch": etag}
        try:
            async with aclosing(self._read(where, 0, None)) as chunks:
                async for chunk in chunks:
                    # A server that ignores the condition sends whatever version it has.
                    if where["IfMatch"] != etag:
                        raise Changed
                    yield chunk
        except NotFound as error:
            raise BucketNotFound(key) from error
        except Refused as error:
            raise (Changed if error.code in CHANGED else BucketRefused)(error.code) from error
        except Unavailable as error:
            raise BucketUnavailable(*error.args) from error

    async def check_writable(self, key: str) -> None:
        """Check that an object may be written, without writing one.

        Raises:
            NotFound: The bucket does not exist.
            OSError: The server refuses, or does not answer.
        """
        upload = Upload(await self._connected(), self._where(key))
        await upload.begin()
        await upload.abort()

    async def has(self, key: str, sha256: str) -> bool:
        """Whether an object is known to have the content with this digest.

        Raises:
            OSError: The server does not answer.
        """
        client = await self._connected()
        try:
            with failures(key):
                found = await client.head_object(**self._where(key))
        except (NotFound, Refused):
            # Without the right to list objects, a server answers with a refusal, not that there is no object.
            return False
        return bool(found["Metadata"].get(SHA256) == sha256)

    async def put(self, key: str, chunks: AsyncIterable[bytes], sha256: str) -> None:
        """Write or replace an object with the content of this digest.

        Raises:
            NotFound: The bucket does not exist.
            OSError: The server refuses, or does not answer.
        """
        await self._abort_others(key)
        await self._write(self._where(key), chunks, {SHA256: sha256})

    async def _abort_others(self, key: str) -> None:
        """Abort uploads of the same object, which only a former owner of the batch can have begun."""
        client = await self._connected()
        pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=key)
        try:
            with failures(key):
                # The prefix has longer keys, too.
                found = [each async for page in pages for each in page.get("Uploads", ()) if each["Key"] == key]
            for upload in found:
                with suppress(NoUpload), failures(key):
                    await client.abort_multipart_upload(**self._where(key), UploadId=upload["UploadId"])
        except (NotFound, Refused):
            # Without the right to list uploads, a lifecycle rule of the bucket has to remove them.
            return

    def _where(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": key}


class Buckets:
    """The buckets of all connections, opened on first use."""

    def __init__(self, connections: Mapping[str, Bucket]) -> None:
        """Connect nothing yet."""
        self._connections = connections
        self._stores: dict[tuple[str, str], BucketStore] = {}
        self._all = asyncio.Semaphore(TRANSFERS_MAX)
        self._turns: dict[tuple[str, str], asyncio.Semaphore] = {}

    def find(self, project: str, address: Address, *, writes: bool) -> BucketStore:
        """The bucket of an address; of several matching connections, the one with the longest folder counts.

        Raises:
            NotAllowed: The project may not use the address.
            OSError: This process lacks the secret of the connection.
        """
        return self._found(project, address, writes=writes)[1]

    @asynccontextmanager
    async def transfer(self, project: str, address: Address, *, writes: bool) -> AsyncIterator[BucketStore]:
        """The bucket of an address, once a transfer may start.

        Raises:
            NotAllowed: The project may not use the address.
            OSError: This process lacks the secret of the connection.
        """
        name, store = self._found(project, address, writes=writes)
        async with self._turns.setdefault((project, name), asyncio.Semaphore(TRANSFERS_EACH_MAX)), self._all:
            yield store

    async def close(self) -> None:
        """Close all connections."""
        for store in self._stores.values():
            await store.close()
        self._stores.clear()

    def _found(self, project: str, address: Address, *, writes: bool) -> tuple[str, BucketStore]:
        folders = [
            (folder, name)
            for name, connection in self._connections.items()
            for folder in connection.folders(project, writes=writes)
        ]
        found = max(
            ((len(folder.segments), name) for folder, name in folders if address.within(folder)), default=None
        )
        if found is None:
            raise NotAllowed(_refusal(project, [folder for folder, _ in folders], writes=writes))
        name = found[1]
        if (key := (name, address.bucket)) not in self._stores:
            self._stores[key] = BucketStore(
                bucket=address.bucket, prefix="", connection=_arguments(self._connections[name])
            )
        return name, self._stores[key]


def reason(error: Exception) -> str:
    """Why a bucket cannot be used, as the end of a sentence."""
    match error:
        case NotFound():
            return "the bucket or the object does not exist"
        case Refused():
            return f"the server refuses it ({error.code})"
        case Unavailable():
            return f"the server does not answer ({error})"
        case NotAllowed() | Changed():
            return str(error)
    return error.strerror or str(error) if isinstance(error, OSError) else type(error).__name__


def _refusal(project: str, folders: list[Address], *, writes: bool) -> str:
    verb = "write to" if writes else "read from"
    if not folders:
        return f"the project '{project}' may not {verb} any bucket."
    shown = ", ".join(f"{folder}/" if folder.segments else str(folder) for folder in folders[:SHOWN_MAX])
    more = f" and {len(folders) - SHOWN_MAX} more" if len(folders) > SHOWN_MAX else ""
    return f"the project '{project}' may only {verb} {shown}{more}."


def _arguments(connection: Bucket) -> dict[str, str]:
    given = {
        "endpoint_url": str(connection.endpoint) if connection.endpoint else None,
        "region_name": connection.region,
        "aws_access_key_id": connection.access_key_id,
        "aws_secret_access_key": connection.secret,
    }
    return {name: value for name, value in given.items() if value is not None}
