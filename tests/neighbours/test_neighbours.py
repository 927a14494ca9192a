"""A short run: while one project floods, creates of another succeed, and processes keep their memory limits."""

import pytest
from neighbours.measure import limits, measure, show

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

SECONDS = 2.0
"""Of each flood; how long a create takes is for `make neighbours` to say, on a machine that does nothing else."""


def test_floods_fail_no_neighbour_and_take_no_more_memory_than_there_is(tmp_path):
    """One in large replies, one over Kafka, one that needs no more than a key to read."""
    rows = measure(tmp_path / "data", ["replies of 31 MiB", "intake: a bomb", "estimates"], SECONDS)
    told, most = show(rows), limits()
    assert all(row.steps for row in rows[2:]), told
    assert not any(row.failures for row in rows), told
    assert all(row.peaks[stage] < most[stage] for row in rows for stage in most), told
