"""Steps of the wall clock are detected once each; slews are not steps."""

from tidemill.results.state.timers import ClockSteps


def test_a_step_is_detected_once():
    """In either direction."""
    wall = [1000.0]
    steps = ClockSteps(lambda: wall[0], lambda: 5.0)
    assert not steps.has_stepped()
    for step in (60, -60):
        wall[0] += step
        assert steps.has_stepped()
        assert not steps.has_stepped()


def test_a_slewed_clock_has_no_steps():
    """However far the slew goes in the end."""
    wall = [1000.0]
    steps = ClockSteps(lambda: wall[0], lambda: 5.0)
    for _ in range(100):
        wall[0] += 0.1
        assert not steps.has_stepped()
