"""Adds partitions to the assignment of a consumer, and removes them, without a rebalance.

`faust/added_partitions.py` says why.
This uses internals of aiokafka 0.14: its live `Assignment`. All functions run on the client's event loop.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from aiokafka.consumer.subscription_state import TopicPartitionState

# ruff: noqa: SLF001 - the purpose of this module

WAIT_MS_MIN: Final = 100
WAIT_MS_MAX: Final = 500
"""Bounds on how long a fetch waits for records, and so an added partition for the next fetch; a fetch of many
partitions costs more, and waits longer."""


def pause_subscribed(client: Any) -> bool:
    """Pause an assignment's own partitions, which have no records; call this before adding any.

    Otherwise their fetch would wait at the broker, and a partition that is added meanwhile would wait for the
    fetch.
    """
    for tp in client._subscription.assigned_partitions():
        client._subscription.pause(tp)
    return True


def extend(client: Any, generation: int, positions: Mapping[Any, int]) -> bool:
    """Add partitions to the assignment of a generation; False if it has ended."""
    subscription = client._subscription.subscription
    if subscription is None or subscription._reassignment_in_progress:
        return False
    assignment = subscription.assignment
    if not assignment.active or client._coordinator.generation != generation:
        return False
    for tp, position in positions.items():
        state = assignment._tp_state[tp] = TopicPartitionState(assignment)
        state.seek(position)
    assignment._topic_partitions |= frozenset(positions)
    for topic in {tp.topic for tp in positions}:
        client._client.add_topic(topic)
    _set_wait(client, assignment)
    # Make the fetcher look at the assignment again.
    client._fetcher._notify(client._fetcher._wait_consume_future)
    return True


def reduce(client: Any, tps: Collection[Any], expected: Mapping[Any, int] | None) -> bool:
    """Remove partitions from the assignment, if they are read up to the expected offsets."""
    subscription = client._subscription.subscription
    assignment = None if subscription is None else subscription.assignment
    if assignment is None or not assignment.active:
        return True
    fetched, states = client._fetcher._records, assignment._tp_state
    if expected is not None and any(
        tp in fetched or not states[tp].has_valid_position or states[tp].position != expected[tp] for tp in tps
    ):
        return False
    assignment._topic_partitions -= frozenset(tps)
    for tp in tps:
        # A fetch in progress finds a state without a position, and drops its records.
        assignment._tp_state[tp] = TopicPartitionState(assignment)
        fetched.pop(tp, None)
    client._client._topics -= {tp.topic for tp in tps}
    _set_wait(client, assignment)
    return True


def _set_wait(client: Any, assignment: Any) -> None:
    client._fetcher._fetch_max_wait_ms = max(WAIT_MS_MIN, min(WAIT_MS_MAX, len(assignment.tps)))
