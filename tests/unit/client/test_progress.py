"""How fast, and how long still."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tidemill.client.progress import PACE_SECONDS, Bars, Lines, Pace, display, duration, state
from tidemill.schemas.batch import Batch, RequestCounts, Status


def batch(status: Status, **counts: int) -> Batch:
    """A batch in a state."""
    return Batch(
        id="batch_1",
        endpoint="/v1/embeddings",
        input_file_id="file-1",
        completion_window="24h",
        status=status,
        created_at=1,
        expires_at=2,
        request_counts=RequestCounts(**counts),
    )


def test_the_rate_is_that_of_the_recent_past() -> None:
    """What was long ago is forgotten."""
    pace = Pace()
    assert pace.seconds_left(10) is None
    for second in range(101):
        pace.add(second, 1000 * min(second, 50) + max(0, second - 50))
    assert pace.rate == pytest.approx(1.0)
    assert pace.seconds_left(30) == pytest.approx(30.0)


@given(st.lists(st.tuples(st.floats(0, PACE_SECONDS), st.integers(0, 50_000)), max_size=50))
def test_a_rate_is_never_negative(steps: list[tuple[float, int]]) -> None:
    """Whatever is seen, in the order of time."""
    pace, now = Pace(), 0.0
    for pause, done in steps:
        now += pause
        pace.add(now, done)
        assert pace.rate >= 0


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.6, "1:00 min"), (185, "3:05 min"), (7389, "2:03:09 h")],
)
def test_durations_are_written_as_people_do(seconds: float, expected: str) -> None:
    """Tenths for a moment, hours for an afternoon."""
    assert duration(seconds) == expected


def test_state_tells_of_failures_and_of_time_left() -> None:
    """Only what is known is said."""
    pace = Pace()
    assert state(batch(Status.VALIDATING), pace) == "validating"
    pace.add(0, 0)
    pace.add(2, 20)
    text = state(batch(Status.IN_PROGRESS, total=1000, completed=15, failed=5), pace)
    assert text == "in_progress, 15 done, 5 failed, 10.0 lines/s, 1:38 min left"
    assert state(batch(Status.COMPLETED, total=1, completed=1), pace) == "completed, 1 done"


def test_without_a_terminal_only_news_is_written() -> None:
    """A log is not filled with one state said many times."""
    file = io.StringIO()
    shown = display(Console(file=file, width=200))
    assert isinstance(shown, Lines)
    with shown:
        shown.transfer("upload", 1234)
        shown.moved(1234)
        for done in range(100):
            shown.batch(batch(Status.IN_PROGRESS, total=100, completed=done))
        shown.batch(batch(Status.COMPLETED, total=100, completed=100))
    assert file.getvalue().splitlines() == [
        "upload: 1,234 bytes",
        "batch_1 of 100 lines: in_progress, 0 done",
        "batch_1 of 100 lines: completed, 100 done",
    ]


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_has_bars(no_color: bool) -> None:
    """One for bytes and one for lines; without colour where that is asked for."""
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True, color_system="standard", no_color=no_color)
    shown = display(console)
    assert isinstance(shown, Bars)
    with shown:
        shown.transfer("upload", 1000)
        shown.moved(1000)
        shown.batch(batch(Status.IN_PROGRESS, total=100, completed=40, failed=2))
        shown.transfer("output", None)
        shown.moved(10)
    text = file.getvalue()
    assert "42/100" in text
    assert "2 failed" in text
    assert ("\x1b[3" in text) != no_color
