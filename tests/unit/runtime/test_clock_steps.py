"""Steps of the wall clock are seen once each; slow corrections are not."""

from tidemill.runtime.clock_steps import ClockSteps


def test_a_step_is_seen_once():
    """In either direction."""
    wall = [1000.0]
    steps = ClockSteps(lambda: wall[0], lambda: 5.0)
    assert not steps.seen()
    wall[0] += 60
    assert steps.seen()
    assert not steps.seen()
    wall[0] -= 60
    assert steps.seen()


def test_a_clock_that_is_slewed_is_followed():
    """However far it goes in the end."""
    wall = [1000.0]
    steps = ClockSteps(lambda: wall[0], lambda: 5.0)
    for _ in range(100):
        wall[0] += 0.1
        assert not steps.seen()
