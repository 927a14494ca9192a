"""A store and the logs that are used with it: its own, another one, an older one, and none of its objects."""

import pytest

from tidemill.schemas.ports import once
from tidemill.storage.directory import DirectoryStore
from tidemill.storage.owner import CONTESTED, FOREIGN, KEY, MISSING, UNCHECKED, Origin, StoreOwner, content_of


class Log:
    """A log, with as many records of files as a test sets, and the objects of those that are not deleted."""

    def __init__(self, store, identity="cluster/files", files=0, keys=()):
        self.identity, self.files, self.keys = identity, files, list(keys)
        self.owner = StoreOwner(store, self.origin, lambda: self.keys)

    async def origin(self):
        """See `StoreOwner`."""
        return Origin(self.identity, self.files)

    async def fault(self, *, marks=True):
        """What a check finds."""
        await self.owner.check(marks=marks)
        return self.owner.fault


@pytest.fixture
def store(tmp_path):
    """A new store."""
    return DirectoryStore(tmp_path)


async def test_a_new_log_owns_a_new_store(store):
    """So do its other processes, and it when it has files."""
    log = Log(store)
    assert await log.fault() is None
    log.files = 5
    assert await log.fault() is None
    assert await Log(store, files=5).fault() is None


@pytest.mark.parametrize("identity", ["other/files", "cluster/recreated", "other/"])
async def test_another_log_owns_nothing(store, identity, caplog):
    """It may have no files yet, or more than the owner; the object stays, and the log says what to do."""
    await Log(store, files=0).fault()
    kept = await content_of(store)
    for files in (0, 9):
        log = Log(store, identity, files)
        assert await log.fault() is FOREIGN
        assert log.owner.is_foreign
    assert await content_of(store) == kept
    assert "put an empty object `owner` there" in caplog.text


async def test_of_two_logs_that_find_a_new_store_one_owns_it(store):
    """The other one sees it at once."""
    first, second = Log(store), Log(store, "other/files")

    async def slow():
        await first.fault()
        return Origin("other/files", 0)

    second.owner = StoreOwner(store, slow, list)
    assert await second.fault() is FOREIGN
    assert first.owner.fault is None


async def test_a_topic_without_an_id_is_any_of_its_cluster(store):
    """A broker that is upgraded gives ids."""
    await Log(store, "cluster/").fault()
    assert await Log(store).fault() is None


async def test_a_log_older_than_the_store_stays_in_doubt(store):
    """Though it grows, and whichever process looks: until an operator has decided."""
    log = Log(store)
    await log.fault()
    log.files = 100
    await log.fault()
    restored = Log(store, files=60)
    assert await restored.fault(marks=False) is CONTESTED
    assert not restored.owner.is_foreign
    for files in (60, 100, 200):
        assert await Log(store, files=files).fault() is CONTESTED
    await store.write(KEY, once())
    assert await Log(store, files=60).fault(marks=False) is None
    assert await Log(store, files=61).fault() is None


async def test_a_store_that_is_not_mounted(store, tmp_path):
    """A log with files owns no empty folder, though a stage has written there; its own one is there later."""
    log = Log(store)
    await log.fault()
    log.files = 3
    below = DirectoryStore(tmp_path / "below")
    empty = Log(below, files=3, keys=["files/old", "files/new"])
    for key in (None, "files/new"):
        if key is not None:
            await below.write(key, once(b"x"))
        assert await empty.fault() is MISSING
        assert empty.owner.is_foreign
        assert await content_of(below) is None
    assert await log.fault() is None


@pytest.mark.parametrize("keys", [["files/a"], ["files/a", "files/b"]])
async def test_a_log_owns_a_store_with_its_files(store, keys):
    """A direct producer may send before the first check; a store may be from before the object existed."""
    for key in keys:
        await store.write(key, once(b"x"))
    log = Log(store, files=7, keys=keys)
    assert await log.fault(marks=False) is None
    assert await Log(store, "other/files").fault() is FOREIGN


async def test_a_log_without_files_owns_no_store_with_some(store):
    """They are of another log, or their records come in a moment."""
    await store.write("files/a", once(b"x"))
    log = Log(store)
    assert await log.fault() is MISSING
    log.files, log.keys = 1, ["files/a"]
    assert await log.fault() is None


async def test_nothing_is_stored_before_the_first_check(store):
    """Which may fail: the log or the store may be away."""
    log = Log(store)

    async def away():
        raise OSError("away")

    log.owner._origin = away
    for _ in range(2):
        assert (log.owner.fault, log.owner.is_foreign) == (UNCHECKED, True)
        with pytest.raises(OSError, match="away"):
            await log.fault()
    log.owner._origin = log.origin
    assert await log.fault() is None


async def test_a_later_offset_of_another_process_is_no_doubt(store):
    """It may note the offset between two steps of a check."""
    first, second = Log(store, files=0), Log(store, files=0)
    await first.fault()
    second.files = 1

    async def then():
        second.files = 2
        await second.fault()
        return Origin("cluster/files", 1)

    checked = StoreOwner(store, then, list)
    await checked.check(marks=True)
    assert checked.fault is None


@pytest.mark.parametrize("content", [b"x", b"{}", b"[]"])
async def test_an_object_that_is_damaged_gives_nothing_away(store, content):
    """It may be of any log."""
    await store.write(KEY, once(content))
    assert await Log(store).fault() is FOREIGN
