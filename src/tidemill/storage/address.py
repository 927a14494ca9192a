"""Opens the object store at an address."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tidemill.schemas.ports import Store
from tidemill.storage.directory import DirectoryStore
from tidemill.storage.metered import MeteredStore


def open_store(url: str, *, reserve_bytes: int = 0, identity: Callable[[], Awaitable[str]] | None = None) -> Store:
    """Open the store at an address, as `Settings.store_url` has it; the caller closes it.

    The address is `file:///dir`, or `s3://bucket/prefix` with the usual `AWS_…` variables for the rest. A store in
    a folder leaves `reserve_bytes` free on its disk. With the `identity` of a log, a store that it does not own
    raises `owner.StoreFault` in place of `NotFound`, and deletes nothing.

    Raises:
        OSError: The folder cannot be created.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        folder = DirectoryStore(Path(url2pathname(parts.path)), reserve_bytes=reserve_bytes)
        return MeteredStore(folder, identity=identity)
    # The import takes half a second, which a store in a folder does not need.
    from tidemill.storage.s3 import S3Store  # noqa: PLC0415

    return MeteredStore(S3Store(bucket=parts.netloc, prefix=parts.path.strip("/")), identity=identity)
