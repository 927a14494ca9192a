"""The whole way of a line on simulated time: whatever ends when, nothing is lost and nothing is paid twice."""

import pytest
from support.simworld import SimulatedWay

SEEDS = 200
CHUNKS = 10


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_way_of_a_line_holds(chunk):
    """Invariants 1 to 5; `SimulatedWay(seed).run()` repeats a failure."""
    for seed in range(chunk, SEEDS, CHUNKS):
        try:
            SimulatedWay(seed).run()
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
