"""How many processes of processors there are."""

import pytest

from tidemill.configuration.settings import Settings
from tidemill.local.up import available_cores, processor_count


@pytest.mark.parametrize(("machine", "processes"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 4), (64, 4)])
def test_by_the_cores(machine: int, processes: int) -> None:
    """One for each two of them, and no more than there are partitions."""
    assert processor_count(Settings(partitions=4), machine) == processes


def test_as_it_is_set() -> None:
    """Whatever the machine has."""
    assert processor_count(Settings(processor_processes=3), 1) == 3
    assert available_cores() >= 1
