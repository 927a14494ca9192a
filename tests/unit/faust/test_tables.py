"""One partition's share of a table, in a real RocksDB; the changelog is a list."""

import asyncio
import tempfile
import weakref
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from faust.streams import _current_event
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.configuration.settings import Settings
from tidemill.faust import stage_app
from tidemill.faust.tables import PartitionTable, declare_table
from tidemill.kafka.partitions.owned_table import OwnedTable

PARTITIONS = 3
STEPS = st.lists(
    st.tuples(
        st.integers(0, PARTITIONS - 1), st.sampled_from([b"a", b"b", b"ab"]), st.none() | st.binary(max_size=3)
    ),
    max_size=30,
)
"""A partition, a key, and its new value; None deletes the key."""


class Event:
    """The event that a worker has in hand."""

    def __init__(self, partition):
        self.message = SimpleNamespace(topic="t", partition=partition)


class Partitions:
    """The shares of a process's partitions, each with its changelog."""

    def __init__(self, folder):
        app = stage_app.create_app("a", Settings(), kafka="127.0.0.1:9", state=folder, tables=True)
        self._table = declare_table(app, "rows", PARTITIONS, cache_bytes=1 << 20)
        self._table._verify_source_topic_partitions = lambda _: None
        self.changelogs = [{} for _ in range(PARTITIONS)]
        self._table._changelog_topic = self
        self.tables = [PartitionTable(self._table, number) for number in range(PARTITIONS)]

    def get_topic_name(self):
        return "changelog"

    def send_soon(self, *, key, value, partition, **_):
        self.changelogs[partition][key] = value
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        done.message = SimpleNamespace(partition=partition)
        return done

    @contextmanager
    def at(self, number):
        """The work of a partition's owner."""
        event = Event(number)
        token = _current_event.set(weakref.ref(event))
        try:
            yield self.tables[number]
        finally:
            _current_event.reset(token)

    def rows(self):
        return [dict(table.scan(b"")) for table in self.tables]


@contextmanager
def partitions():
    with tempfile.TemporaryDirectory() as folder:
        yield Partitions(Path(folder))


class FutureWithMessage(asyncio.Future):
    """As Faust's."""


@pytest.fixture(autouse=True)
def _futures(monkeypatch):
    monkeypatch.setattr(asyncio.BaseEventLoop, "create_future", lambda loop: FutureWithMessage(loop=loop))


@settings(max_examples=25)
@given(steps=STEPS)
def test_a_partition_keeps_its_rows_whatever_others_delete(steps):
    """Owners of different partitions have rows with equal keys; each changelog has what its table has."""

    async def main():
        with partitions() as made:
            expected = [{} for _ in range(PARTITIONS)]
            for number, key, value in steps:
                with made.at(number) as table:
                    if value is None:
                        table.delete(key)
                        expected[number].pop(key, None)
                    else:
                        table.put(key, value)
                        expected[number][key] = value
                assert made.rows() == expected
                assert [table.get(key) for table in made.tables] == [rows.get(key) for rows in expected]
            kept = [{key: value for key, value in sent.items() if value is not None} for sent in made.changelogs]
            assert kept == expected

    asyncio.run(main())


async def test_a_take_over_leaves_the_rows_of_other_partitions():
    """Its process takes over several partitions, one after the other, from one owner: all have equal keys."""
    with partitions() as made:
        for number in range(PARTITIONS):
            with made.at(number) as table:
                before = OwnedTable(table)
                await before.take_over(1)
                table.put(before.key(b"decided"), b"%d" % number)
        for number in range(PARTITIONS):
            with made.at(number) as table:
                after = OwnedTable(table)
                await after.take_over(2)
                assert after.latest(b"decided").value == b"%d" % number
                table.delete(b"decided/%016x" % 1)
