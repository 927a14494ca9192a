"""A table's changelog: how far the local table has it, and who waits for it."""

import asyncio
from collections import defaultdict
from types import SimpleNamespace

import pytest

from tidemill.faust.tables import DeliveredTable, PartitionTable


class Store:
    """As the table's, as far as it matters."""

    def __init__(self, offset):
        self.offset = offset

    def persisted_offset(self, tp):
        del tp
        return self.offset

    def set_persisted_offset(self, tp, offset):
        del tp
        self.offset = offset


@pytest.mark.parametrize(
    ("before", "sent", "after"),
    [(None, [0, 1], 1), (9, [10, 11], 11), (9, [10, 12, 13], 10), (None, [3], None), (9, [-1, 10], 10)],
)
def test_records_of_another_process_are_not_skipped(before, sent, after):
    """The next take-over reads rows that a successor wrote before this process's last one."""
    table = DeliveredTable.__new__(DeliveredTable)
    table.app = SimpleNamespace(in_transaction=False)
    table._data = Store(before)
    for offset in sent:
        record = SimpleNamespace(topic_partition=("t", 0), offset=offset)
        table._on_changelog_sent(SimpleNamespace(result=lambda record=record: record))
    assert table._data.offset == after


class Changelog:
    """A topic whose records are acknowledged by the test."""

    def __init__(self):
        self.sent = []

    def get_topic_name(self):
        return "changelog"

    def send_soon(self, **_):
        self.sent.append(asyncio.get_running_loop().create_future())
        return self.sent[-1]


@pytest.fixture
def written():
    """A table with a changelog that acknowledges nothing by itself."""
    table = DeliveredTable.__new__(DeliveredTable)
    table._undelivered = defaultdict(list)
    table.key_serializer = table.value_serializer = "raw"
    table._changelog_topic = Changelog()
    return table


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_each_partition_waits_for_its_own_records_alone(written):
    """A worker that waits takes no record from another, which would then acknowledge its input too early."""
    written.send_changelog(0, b"k", b"v")
    written.send_changelog(1, b"k", b"v")
    first, second = (asyncio.create_task(PartitionTable(written, number).delivered()) for number in (0, 1))
    await turns()
    assert not first.done()
    assert not second.done()
    written._changelog_topic.sent[1].set_result(None)
    await turns()
    assert (first.done(), second.done()) == (False, True)
    written._changelog_topic.sent[0].set_result(None)
    await first


async def test_all_who_wait_for_a_record_see_its_end(written):
    """A second task of a partition waits as long as the first, even beside a cancelled one, and sees the error."""
    written.send_changelog(0, b"k", b"v")
    cancelled, first, second = (asyncio.create_task(written.delivered(0)) for _ in range(3))
    await turns()
    cancelled.cancel()
    await turns()
    assert not first.done()
    assert not second.done()
    written._changelog_topic.sent[0].set_exception(OSError("no broker"))
    for one in (first, second):
        with pytest.raises(OSError, match="no broker"):
            await one
    await written.delivered(0)
