"""The object store in a folder, where the object `files/a` is the file `files/a`.

The store writes an object to `.partial` and renames it, so that readers see the whole object or none. A crash
leaves a file in `.partial`, which a store deletes when it opens the folder later.

A disk may hang, like one behind NFS. A call that is cancelled does not wait for it: its thread closes and deletes
the file, once the disk answers, and publishes no object.
"""

import asyncio
import errno
import itertools
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tidemill.schemas.ports import READ_BYTES, NotFound, chained, checked_key, checked_prefix, once
from tidemill.storage.disk_space import STORE, DiskFull
from tidemill.storage.threads import Held, Threads

HOP_BYTES = 1 << 20
"""The store collects chunks up to this size before a thread writes them: a thread switch costs about 0.1 ms."""
HOP_KEYS = 1000
PARTIAL = ".partial"
PARTIAL_AGE_SECONDS_MAX = 86_400
RENAME_TRIES_MAX = 5
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""Errors of a file system without hard links; there two calls of `create` at the same moment may both write."""

_threads = Threads()
_hop = _threads.run


class DirectoryStore:
    """Objects in a folder, which any number of processes of one machine may share."""

    def __init__(self, root: Path, *, reserve_bytes: int = 0) -> None:
        """Create the folder if needed; writes leave `reserve_bytes` free on its disk (`disk_space.py`)."""
        self._root = root
        self._reserve_bytes = reserve_bytes
        self._partial = root / PARTIAL
        self._partial.mkdir(parents=True, exist_ok=True)
        _delete_stale(self._partial, before=time.time() - PARTIAL_AGE_SECONDS_MAX)

    async def write(self, key: str, chunks: AsyncIterable[bytes]) -> int:
        """See `Store.write`; an object of up to `HOP_BYTES` takes one thread switch."""
        return await self._write(Path.replace, key, chunks)

    async def create(self, key: str, content: bytes) -> bool:
        """See `Store.create`."""
        try:
            await self._write(_publish_new, key, once(content))
        except FileExistsError:
            return False
        return True

    async def _write(self, publish: "Publish", key: str, chunks: AsyncIterable[bytes]) -> int:
        partial = self._partial / secrets.token_hex(16)
        draft = _Draft(partial, self._path(key), self._reserve_bytes, publish)
        collected: list[bytes] = []
        size = 0
        try:
            async for chunk in chunks:
                collected.append(chunk)
                size += len(chunk)
                if size >= HOP_BYTES:
                    await _hop(draft.held.use, draft.write, b"".join(collected))
                    collected, size = [], 0
            return await _hop(draft.held.use, draft.commit, b"".join(collected))
        except Exception:
            draft.held.leave()
            # A call that waits for a thread would be dropped with its caller.
            await asyncio.shield(asyncio.wrap_future(_threads.submit(draft.discard)))
            raise
        except BaseException:
            if draft.held.leave():
                _threads.submit(draft.discard)
            raise

    async def join(self, key: str, sources: Sequence[str]) -> int:
        """See `Store.join`."""
        return await self.write(key, chained(self, sources))

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """See `Store.read`; a started read continues with the same object after a replacement."""
        reading = _Reading(self._path(key), key)
        try:
            while chunk := await _hop(reading.held.use, reading.read, start, end):
                yield chunk
                start += len(chunk)
                if start >= reading.end:
                    break
        finally:
            if reading.held.leave():
                reading.close()

    async def size(self, key: str) -> int:
        """See `Store.size`."""
        return await _hop(_size, self._path(key), key)

    async def link(self, key: str, disposition: str) -> None:
        """See `Store.link`; None, since only the api serves the folder."""
        del key, disposition

    async def free(self) -> int:
        """See `Store.free`."""
        return await _hop(_free, self._root)

    async def delete(self, key: str) -> None:
        """See `Store.delete`; also deletes folders that become empty."""
        await _hop(_delete, self._path(key), self._root)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        """See `Store.keys`."""
        folder, _, beginning = checked_prefix(prefix).rpartition("/")
        found = _walk(self._root, folder, beginning)
        batch = [""] * HOP_KEYS
        while len(batch) == HOP_KEYS:
            for key in (batch := await _hop(list, itertools.islice(found, HOP_KEYS))):
                yield key

    async def close(self) -> None:
        """Do nothing: no file stays open between calls."""

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)


Publish = Callable[[Path, Path], object]
"""Gives a complete file its name."""


def _publish_new(partial: Path, target: Path) -> None:
    """Raises `FileExistsError` if the name is taken; by a link, since a rename would replace the file."""
    try:
        target.hardlink_to(partial)
    except FileExistsError:
        # The caller goes by the other file, which has to stay.
        _sync(target.parent)
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            raise FileExistsError(str(target)) from error
        partial.replace(target)
    else:
        partial.unlink()


class _File:
    """A file that is open once it has a descriptor."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


class _Draft(_File):
    """An object that is being written. Every method blocks; only one thread at a time may call them."""

    def __init__(self, partial: Path, target: Path, reserve_bytes: int, publish: "Publish") -> None:
        super().__init__()
        self._publish = publish
        self._partial = partial
        self._target = target
        self._reserve_bytes = reserve_bytes
        self._size = 0
        self.held = Held(self.discard)

    def write(self, data: bytes) -> None:
        if self._reserve_bytes and (free := _free(self._partial.parent)) - len(data) < self._reserve_bytes:
            raise DiskFull(STORE, free, self._reserve_bytes)
        if self._descriptor is None:
            self._descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._size += len(data)

    def commit(self, data: bytes) -> int:
        """Write the last bytes and publish the object; returns its size in bytes."""
        self.write(data)
        assert self._descriptor is not None
        os.fsync(self._descriptor)
        self.close()
        if self.held.is_left:
            raise asyncio.CancelledError
        for last in (False,) * (RENAME_TRIES_MAX - 1) + (True,):
            # A deletion may remove the empty folder between the two steps.
            try:
                _create(self._target.parent)
                self._publish(self._partial, self._target)
                break
            except FileNotFoundError:
                if last:
                    raise
        _sync(self._target.parent)
        return self._size

    def discard(self) -> None:
        self.close()
        self._partial.unlink(missing_ok=True)


class _Reading(_File):
    """An object that is being read. The first `read` opens it; every `read` blocks."""

    def __init__(self, path: Path, key: str) -> None:
        super().__init__()
        self._path = path
        self._key = key
        self.end = 0
        """Where the wanted bytes end, once the object is open."""
        self.held = Held(self.close)

    def read(self, start: int, end: int | None) -> bytes:
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_RDONLY)
                size = os.fstat(self._descriptor).st_size
                self.end = size if end is None else min(size, end)
            return os.pread(self._descriptor, max(0, min(READ_BYTES, self.end - start)), start)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFound(self._key) from error


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _size(path: Path, key: str) -> int:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(key) from error
    if not path.is_file():
        raise NotFound(key)
    return found.st_size


def _delete(path: Path, root: Path) -> None:
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return
    with suppress(OSError):
        for folder in path.parents:
            if folder == root:
                break
            folder.rmdir()


def _walk(root: Path, folder: str, beginning: str = "") -> Iterator[str]:
    """The keys under a folder in the order of their bytes; a folder sorts by its name with the slash.

    Only folders whose names start with `beginning` are opened.
    """
    try:
        with os.scandir(root / folder) as found:
            names = sorted(
                entry.name + "/" if entry.is_dir() else entry.name
                for entry in found
                if entry.name.startswith(beginning) and not entry.name.startswith(".")
            )
    except (FileNotFoundError, NotADirectoryError):
        return
    base = folder + "/" if folder else ""
    for name in names:
        if name.endswith("/"):
            yield from _walk(root, base + name[:-1])
        else:
            yield base + name


def _create(folder: Path) -> None:
    """Create a folder and its missing parents durably."""
    if folder.is_dir():
        return
    _create(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete_stale(partial: Path, *, before: float) -> None:
    """Delete files of crashed writers; an active writer keeps the time of its file recent."""
    with os.scandir(partial) as found:
        for entry in found:
            with suppress(FileNotFoundError):
                if entry.stat().st_mtime < before:
                    Path(entry.path).unlink()
