"""A store on a disk that hangs, like one behind NFS."""

import asyncio
import errno
import os
import threading
import weakref

import pytest
from support.waiting import WAIT_SECONDS_MAX, until, wait_until

from tidemill.schemas.ports import once
from tidemill.storage import directory
from tidemill.storage.directory import DirectoryStore
from tidemill.storage.threads import Threads

SECONDS = 0.05


class Disk:
    """Hangs in one call of the system until `go_on` is set."""

    def __init__(self, monkeypatch, name):
        self.go_on, self.began, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.opened, opening = [], os.open

        def noted(*args):
            self.opened.append(opening(*args))
            return self.opened[-1]

        monkeypatch.setattr(os, "open", noted)
        original = getattr(os, name)

        def hang(*args):
            self.began.set()
            assert self.go_on.wait(WAIT_SECONDS_MAX)
            try:
                return original(*args)
            finally:
                self.ended.set()

        monkeypatch.setattr(os, name, hang)

    def is_closed(self):
        """Whether all files are closed that were opened while it hung."""
        for descriptor in self.opened:
            try:
                os.fstat(descriptor)
            except OSError:
                continue
            return False
        return True


@pytest.fixture
def store(tmp_path):
    return DirectoryStore(tmp_path)


def files(folder):
    return [path.name for path in folder.rglob("*") if path.is_file()]


async def cancel(work, disk):
    """Cancel work that waits for the disk; it ends before the disk answers."""
    task = asyncio.ensure_future(work)
    await until(disk.began.is_set, "the call of the disk")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not disk.ended.is_set()


@pytest.mark.parametrize("call", ["fsync", "write", "open"])
async def test_a_write_is_cancelled_at_once(call, store, tmp_path, monkeypatch):
    """Its thread deletes the file once the disk answers, and publishes no object."""
    with monkeypatch.context() as patch:
        disk = Disk(patch, call)
        await cancel(store.write("a", once(b"x")), disk)
        disk.go_on.set()
        await until(disk.ended.is_set, "the answer of the disk")
        await until(lambda: not files(tmp_path) and disk.is_closed(), "the thread's cleaning")
    assert await store.write("a", once(b"y")) == 1
    assert files(tmp_path) == ["a"]


async def test_a_file_system_without_links_creates_objects(store, tmp_path, monkeypatch):
    """There two calls at the same moment may both write; a later one does not."""

    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert await store.create("a/b", b"x")
    assert not await store.create("a/b", b"y")
    assert b"".join([chunk async for chunk in store.read("a/b")]) == b"x"
    assert files(tmp_path) == ["b"]


async def test_a_read_is_cancelled_at_once(store, monkeypatch):
    """Its thread closes the file once the disk answers."""
    await store.write("a", once(b"x"))
    with monkeypatch.context() as patch:
        disk = Disk(patch, "pread")
        await cancel(anext(store.read("a")), disk)
        assert disk.opened
        assert not disk.is_closed()
        disk.go_on.set()
        await until(disk.is_closed, "the thread's cleaning")
    assert [chunk async for chunk in store.read("a")] == [b"x"]


async def test_looks_at_the_disk_are_cancelled_at_once(store, monkeypatch):
    """More of them than there are threads; then the store answers again."""
    threads = Threads(2)
    monkeypatch.setattr(directory, "_hop", threads.run)
    with monkeypatch.context() as patch:
        disk = Disk(patch, "statvfs")
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(SECONDS):
                    await store.free()
        disk.go_on.set()
    assert await store.free() > 0
    assert threads._count == 2


async def test_a_call_that_waits_for_a_thread_is_never_made(store, tmp_path, monkeypatch):
    """Once it is cancelled."""
    threads = Threads(1)
    monkeypatch.setattr(directory, "_threads", threads)
    monkeypatch.setattr(directory, "_hop", threads.run)
    with monkeypatch.context() as patch:
        disk = Disk(patch, "statvfs")
        looking = asyncio.create_task(store.free())
        await until(disk.began.is_set, "the look")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SECONDS):
                await store.write("a", once(b"x"))
        disk.go_on.set()
        await looking
    assert files(tmp_path) == []
    assert not disk.opened


def test_a_thread_keeps_nothing_of_a_call_that_has_ended():
    """Its caller goes on with the next megabyte, perhaps before the thread does."""
    go_on, kept = threading.Event(), []

    class Data:
        def use(self):
            go_on.wait(WAIT_SECONDS_MAX)

    data = Data()
    future, known = Threads(1).submit(Data.use, data), weakref.ref(data)
    del data
    future.add_done_callback(lambda _: kept.append(known()))
    go_on.set()
    wait_until(lambda: kept, "the end of the call")
    assert kept == [None]
