"""Progress of a batch: state, bars on a terminal, plain lines in a log."""

import io

import pytest
from rich.progress import Progress

from tidemill.client.http.client import Client
from tidemill.client.library.batch import AsyncBatch
from tidemill.client.progress import BAR_CELLS, Bars, Lines, display, duration, state
from tidemill.schemas.resources.batch import Batch, RequestCounts, Status
from tidemill.terminal import Console


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.6, "1:00 min"), (185, "3:05 min"), (7389, "2:03:09 h")],
)
def test_durations_are_short(seconds: float, expected: str) -> None:
    """Tenths of a second only below ten seconds."""
    assert duration(seconds) == expected


def test_the_state_has_failures_rate_and_time_left() -> None:
    """A stage that has no rate yet, and a final one, are named alone."""
    now = 0.0
    with Progress(disable=True, get_time=lambda: now) as progress:
        task = progress.add_task("in.jsonl", total=0)

        def text(status: Status, counts: RequestCounts) -> str:
            done = counts.completed + counts.failed
            progress.update(task, total=counts.total, completed=done, status=status, counts=counts)
            return state(progress.tasks[0])

        assert text(Status.VALIDATING, RequestCounts()) == "validating"
        assert text(Status.IN_PROGRESS, RequestCounts(total=1000, completed=1)) == ""
        now = 2.0
        counts = RequestCounts(total=1000, completed=16, failed=5)
        assert text(Status.IN_PROGRESS, counts) == "5 failed, 10.0/s, 1:38 min left"
        assert text(Status.COMPLETED, RequestCounts(total=1000, completed=1000)) == "completed"


def test_one_line_is_in_the_singular() -> None:
    """In the log of a run, and as the library shows a batch."""
    file = io.StringIO()
    with Lines(Console(file=file, width=200)) as shown:
        shown.lines("in.jsonl", Status.IN_PROGRESS, RequestCounts(total=1))
    assert file.getvalue() == "in.jsonl: 0 of 1 line\n"
    counts = RequestCounts(total=1, completed=1)
    batch = Batch(
        id=f"batch_{'0' * 32}", endpoint="/v1/embeddings", input_file_id="file-a", completion_window="24h",
        created_at=1, expires_at=2, status=Status.COMPLETED, request_counts=counts,
    )  # fmt: skip
    assert repr(AsyncBatch(Client("http://x/v1", "k"), Console(), batch)).endswith("completed, 1 of 1 line>")


def test_without_a_terminal_a_line_is_printed_at_a_change() -> None:
    """A hundred updates within a moment are one line."""
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
    """One for bytes and one for lines, whose colour shows how many failed, unless NO_COLOR is set."""
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
def test_a_bar_keeps_its_length_in_80_columns(name: str) -> None:
    """The text beside it is cut first."""
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
