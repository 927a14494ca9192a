"""Local files of a table that do not belong to its changelog, in a real RocksDB."""

import asyncio
import gc
import os
from types import SimpleNamespace

import pytest
from faust.types import TP
from support.waiting import until

from tidemill.configuration.settings import Settings
from tidemill.faust import local_tables, stage_app
from tidemill.faust.local_tables import check_files
from tidemill.faust.tables import PartitionTable, declare_table

HERE = TP("changelog", 0)
OWN = "cluster/topic"
END = 6


class Files:
    """The files of partition 0, and what the process sees in them."""

    def __init__(self, folder):
        app = stage_app.create_app("a", Settings(), kafka="127.0.0.1:9", state=folder, tables=True)
        self.store = declare_table(app, "rows", 1, cache_bytes=1 << 20).data

    def close(self):
        """As a process that ends; the next one opens them."""
        self.store._db_for_partition(0).flush()
        self.store._dbs.clear()
        gc.collect()

    def check(self, identity=OWN, end=END):
        """Whether the row is there, after the check of a take-over."""
        check_files(self.store, 0, identity, end)
        return self.store._db_for_partition(0).get(b"row") is not None

    @property
    def folder(self):
        """The folder of partition 0."""
        return self.store.partition_path(0)


@pytest.fixture
def files(tmp_path):
    """The files of a process that has checked them, and has read its changelog to the end."""
    files = Files(tmp_path / "state")
    assert not files.check()
    files.store._db_for_partition(0).put(b"row", b"1")
    files.store.set_persisted_offset(HERE, END - 1)
    assert files.check()
    files.close()
    return files


@pytest.mark.parametrize("identity", ["other/topic", "cluster/recreated"])
def test_files_of_another_log_are_rebuilt(files, identity, caplog):
    """Faust reads the changelog from its beginning then, and the next start keeps the files."""
    assert files.check()
    assert not files.check(identity)
    assert files.store.persisted_offset(HERE) is None
    assert "the files of partition 0 of table rows belong to another log" in caplog.text
    files.store._db_for_partition(0).put(b"row", b"2")
    assert files.check(identity)


def test_files_without_an_identity_are_rebuilt(files, caplog):
    """An older process wrote them, of any log."""
    files.store._db_for_partition(0).delete(b"__tidemill\0changelog__")
    assert not files.check()
    assert "the files of partition 0 of table rows do not name their log" in caplog.text


def test_files_of_another_log_without_an_offset_are_rebuilt(files):
    """A process has written rows, and ended before the first record of its changelog was acknowledged."""
    files.store._db_for_partition(0).delete(files.store.offset_key)
    assert files.check()
    assert not files.check("other/topic")


async def test_files_of_the_last_owner_are_awaited(tmp_path, monkeypatch, caplog):
    """A scan of its own that has not ended keeps them open for a moment after a rebalance."""
    caplog.set_level("INFO")
    files = Files(tmp_path)
    assert not files.check()
    files.store._db_for_partition(0).put(b"row", b"1")

    async def log(*_):
        return {("changelog", 0): (OWN, END)}

    monkeypatch.setattr(local_tables, "_changelogs", log)
    topic = SimpleNamespace(get_topic_name=lambda: "changelog")
    table = SimpleNamespace(data=files.store, changelog_topic=topic)
    scan = PartitionTable(table, 0).scan(b"")
    next(scan)
    files.store._dbs.clear()
    gc.collect()
    checking = asyncio.create_task(local_tables.check("", [(table, 0)], files.store.app.consumer_generation_id))
    await until(lambda: "is locked" in caplog.text or checking.done())
    scan.close()
    gc.collect()
    await checking
    assert files.check()


def test_files_newer_than_the_log_are_rebuilt(files, caplog):
    """The log was restored from a backup, or has lost records."""
    assert files.check()
    assert not files.check(end=END - 1)
    assert "are newer than the log: offset 5 of 5" in caplog.text


def test_files_of_an_empty_log_are_rebuilt(files):
    """Its end is 0, as if it had no records yet."""
    assert not files.check(end=0)


@pytest.mark.parametrize("name", ["MANIFEST-*", "CURRENT", "*.sst"])
@pytest.mark.parametrize("damage", ["gone", "empty", "half"])
def test_damaged_files_are_rebuilt(files, name, damage, caplog):
    """A half copy, or a disk that lost a write."""
    for file in files.folder.glob(name):
        if damage == "gone":
            file.unlink()
        else:
            os.truncate(file, file.stat().st_size // 2 if damage == "half" else 0)
    assert not files.check()
    # Of half a manifest RocksDB may read an earlier state, which has no row and no offset.
    warnings = caplog.text.count("are damaged")
    assert warnings == 1 or (damage, name) == ("half", "MANIFEST-*")
    assert files.store.persisted_offset(HERE) is None
    assert not files.check()
    assert caplog.text.count("are damaged") == warnings


def test_files_in_use_stay(files):
    """Another process has them open, and may still write."""
    assert files.check()
    with pytest.raises(Exception, match="lock"):
        files.store._open_for_partition(0)
    assert files.check()
