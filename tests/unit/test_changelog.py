"""Up to where a local table has its changelog."""

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
def test_no_record_of_another_is_passed_over(before, sent, after):
    """What a successor wrote before one's own last record is read at the next take-over."""
    table = DeliveredTable.__new__(DeliveredTable)
    table.app = SimpleNamespace(in_transaction=False)
    table._data = Store(before)
    for offset in sent:
        record = SimpleNamespace(topic_partition=("t", 0), offset=offset)
        table._on_changelog_sent(SimpleNamespace(result=lambda record=record: record))
    assert table._data.offset == after
