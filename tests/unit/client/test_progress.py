"""Progress: rate, time left, bars and plain lines."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tidemill.client.progress import BAR_CELLS, PACE_SECONDS, Bars, Lines, Pace, display, duration, state
from tidemill.schemas.resources.batch import RequestCounts, Status


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
    """Only what is known is said, and not what stands beside it."""
    pace = Pace()
    assert state(Status.VALIDATING, RequestCounts(), pace) == "validating"
    pace.add(0, 0)
    pace.add(2, 20)
    text = state(Status.IN_PROGRESS, RequestCounts(total=1000, completed=15, failed=5), pace)
    assert text == "5 failed, 10.0/s, 1:38 min left"
    assert state(Status.COMPLETED, RequestCounts(total=1, completed=1), pace) == "completed"


def test_without_a_terminal_only_news_is_written() -> None:
    """A log is not filled with one state said many times."""
    file = io.StringIO()
    shown = display(Console(file=file, width=200))
    assert isinstance(shown, Lines)
    with shown:
        shown.transfer("upload", 1234)
        shown.moved(1234)
        for done in range(100):
            shown.lines("in.jsonl", Status.IN_PROGRESS, RequestCounts(total=100, completed=done))
        shown.lines("in.jsonl", Status.COMPLETED, RequestCounts(total=100, completed=99, failed=1))
    assert file.getvalue().splitlines() == [
        "upload: 1,234 bytes",
        "in.jsonl: 0 of 100 lines",
        "in.jsonl: 100 of 100 lines, completed, 1 failed",
    ]


def test_an_unchanged_state_is_repeated_once_a_minute() -> None:
    """A batch that stalls for ten minutes takes ten lines; one that moves takes six a minute."""
    file, now = io.StringIO(), 1000.0
    lines = Lines(Console(file=file, width=200), lambda: now)
    for _ in range(600):
        now += 1
        lines.lines("in.jsonl", Status.IN_PROGRESS, RequestCounts(total=100, completed=7))
    assert file.getvalue().splitlines() == ["in.jsonl: 7 of 100 lines"] * 10
    for done in range(8, 68):
        now += 1
        lines.lines("in.jsonl", Status.IN_PROGRESS, RequestCounts(total=100, completed=done))
    assert len(file.getvalue().splitlines()) == 16


@pytest.mark.parametrize("no_color", [False, True])
@pytest.mark.parametrize(("completed", "colour"), [(100, 32), (1, 33), (0, 31)])
def test_a_terminal_has_bars(*, no_color: bool, completed: int, colour: int) -> None:
    """One for bytes and one for lines, whose colour says how many failed; none where that is asked for."""
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system="standard", no_color=no_color)
    shown = display(console)
    assert isinstance(shown, Bars)
    with shown:
        shown.transfer("upload", 1000)
        shown.moved(1000)
        counts = RequestCounts(total=100, completed=completed, failed=100 - completed)
        shown.lines("batch", Status.COMPLETED, counts)
    text = file.getvalue()
    assert "100/100" in text
    assert (f"\x1b[{colour}m━" in text.rsplit("batch", 1)[1]) != no_color


@pytest.mark.parametrize("name", ["in.jsonl", "a-very-long-name-of-a-file.jsonl (1a2b3c4d)"])
def test_a_bar_is_as_long_as_ever_in_80_columns(name: str) -> None:
    """What is said beside it is cut off before it takes anything from the bar."""
    file = io.StringIO()
    shown = display(Console(file=file, width=80, force_terminal=True, no_color=True))
    with shown:
        for done in range(0, 50_000, 10_000):
            counts = RequestCounts(total=50_000, completed=done, failed=12_345)
            shown.lines(name, "a long word for it, which goes on and on and on and on", counts)
    last = [line for line in file.getvalue().splitlines() if "/50,000" in line][-1]
    assert last.count("━") + last.count("╸") + last.count("╺") == BAR_CELLS
    assert last.rstrip().endswith("…")
    assert name[-8:] in last
