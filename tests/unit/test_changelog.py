"""The offset up to which a local table has its changelog."""

from types import SimpleNamespace

import pytest

from tidemill.faust.tables import DeliveredTable


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
