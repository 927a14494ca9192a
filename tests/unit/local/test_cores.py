"""How many processes of processors there are."""

import pytest

from tidemill.configuration.settings import Settings
from tidemill.local import cores


@pytest.mark.parametrize(("machine", "processes"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 4), (64, 4)])
def test_by_the_cores(machine: int, processes: int) -> None:
    """One for each two of them, and no more than there are partitions."""
    assert cores.processors(Settings(partitions=4), machine) == processes


def test_as_it_is_set() -> None:
    """Whatever the machine has."""
    assert cores.processors(Settings(processor_processes=3), 1) == 3
    assert cores.available() >= 1
