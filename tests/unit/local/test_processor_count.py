"""The number of processes of processors."""

import pytest

from tidemill.configuration.settings import Settings
from tidemill.local.up import available_cores, processor_count


@pytest.mark.parametrize(("machine", "processes"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 4), (64, 4)])
def test_one_process_for_two_cores(machine: int, processes: int) -> None:
    """At most one for each partition."""
    assert processor_count(Settings(partitions=4), machine) == processes


def test_the_setting_takes_precedence() -> None:
    """Whatever the number of cores."""
    assert processor_count(Settings(processor_processes=3), 1) == 3
    assert available_cores() >= 1
