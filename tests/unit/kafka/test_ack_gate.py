"""The ack gate acknowledges in order, whatever the order of completion."""

from hypothesis import given
from hypothesis import strategies as st

from tidemill.kafka.partitions.ack_gate import AckGate


@given(st.permutations(range(20)), st.integers(0, 20))
def test_nothing_is_acknowledged_past_unfinished_work(order, finished):
    """The acknowledged records are always the longest finished run from the head, in order and once."""
    gate = AckGate()
    tickets = [gate.admit(offset) for offset in range(20)]
    acked = []
    for offset in order[:finished]:
        acked += gate.finish(tickets[offset])
        done = set(order[: order.index(offset) + 1])
        head = next((offset for offset in range(20) if offset not in done), 20)
        assert acked == list(range(head))
    assert len(gate) == 20 - len(acked)
    assert list(gate.unfinished) == sorted(order[finished:])
