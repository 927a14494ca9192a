"""Steps of the wall clock are detected once each; slews are not steps, and after a step forward nothing is old."""

import math
import time
from pathlib import Path

import pytest

from tidemill.configuration.settings import Settings
from tidemill.faust import stage_app
from tidemill.runtime.clocks import (
    DOUBT_SECONDS,
    START_SECONDS,
    ClockSteps,
    DeletionClock,
    session_clock,
)
from tidemill.schemas.ports import boottime


def test_a_step_is_detected_once():
    """In either direction."""
    wall = [1000.0]
    steps = ClockSteps(lambda: wall[0], lambda: 5.0)
    assert not steps.step()
    for step in (60, -60):
        wall[0] += step
        assert steps.step() == step
        assert not steps.step()


def test_a_slewed_clock_has_no_steps():
    """However far the slew goes in the end."""
    wall = [1000.0]
    steps = ClockSteps(lambda: wall[0], lambda: 5.0)
    for _ in range(100):
        wall[0] += 0.1
        assert not steps.step()


def test_nothing_is_old_after_a_step_forward():
    """For an hour, whether the clock is set right meanwhile or not; nor just after a start."""
    now, ahead = [5.0], [1000.0]
    clock = DeletionClock(lambda: now[0] + ahead[0], lambda: now[0])
    assert clock() == -math.inf
    now[0] += START_SECONDS
    assert clock() == now[0] + ahead[0]
    for step in (30.0, -86_400.0):
        ahead[0] += step
        assert clock() == now[0] + ahead[0]
    ahead[0] += 86_400.0
    assert clock() == -math.inf
    now[0] += DOUBT_SECONDS - 1
    assert clock() == -math.inf
    now[0] += 1
    assert clock() == now[0] + ahead[0]


def test_the_boot_time_is_not_behind_the_monotonic_clock():
    """It counts the time of suspensions, too."""
    before = time.monotonic()
    assert boottime() >= before


@pytest.mark.parametrize(
    ("servers", "clock"),
    [
        ("127.0.0.1:9092", time.monotonic),
        ("localhost:9092,[::1]:9093", time.monotonic),
        ("kafka-1:9092", boottime),
        ("localhost:9092,10.0.0.7:9092", boottime),
    ],
)
def test_sessions_end_while_the_machine_sleeps_if_the_broker_is_another(
    servers: str, clock: object, tmp_path: Path
) -> None:
    """The membership of a stage goes by that clock, since another process may own its partitions by then."""
    assert session_clock(servers) is clock
    app = stage_app.create_app("tidemill-test", Settings(), kafka=servers, state=tmp_path / "state")
    assert app.membership.clock is clock
