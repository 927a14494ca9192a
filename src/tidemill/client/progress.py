"""Progress of a batch on stderr: lines, rate and time left, as bars or as plain lines."""

import time
from collections.abc import Callable, Iterable
from typing import Self

from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TaskID, TransferSpeedColumn
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from tidemill.schemas.resources.batch import TERMINAL, RequestCounts, Status
from tidemill.schemas.resources.waiting import USUAL, Reason, Waiting
from tidemill.terminal import Console, shortened
from tidemill.wording import counted

RATE_SECONDS = 30.0
"""Window of the rate."""
PLAIN_SECONDS = 10.0
"""Without a terminal, minimum interval of lines with the same status."""
IDLE_SECONDS = 60.0
"""Without a terminal, interval of lines that repeat their predecessor."""
NAME_CHARS = 14
BAR_CELLS = 16
MINUTE, HOUR = 60, 3600


def duration(seconds: float) -> str:
    """A duration in words: `0.4 s`, `42 s`, `3:05 min`, `2:03:09 h`."""
    if seconds < 10:  # noqa: PLR2004 - tenths matter only of a small number
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE}:{whole % MINUTE:02} min"
    return f"{whole // HOUR}:{whole % HOUR // MINUTE:02}:{whole % MINUTE:02} h"


def state(task: Task) -> str:
    """The text beside the bar of a batch, short enough for 80 columns."""
    status, counts = task.fields["status"], task.fields["counts"]
    words = [status] if status != Status.IN_PROGRESS or not counts.total else []
    if counts.failed:
        words.append(f"{counts.failed:,} failed")
    if status not in TERMINAL and task.speed:
        words.append(f"{task.speed:,.1f}/s")
        words += [f"{duration(left)} left"] if (left := task.time_remaining) else []
    return ", ".join(words)


class Display:
    """Shows nothing, for a batch whose run shows the progress of all; a context manager."""

    unit = "line"
    """What the counts are of."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def transfer(self, name: str, size: int | None) -> None:
        """Begin a transfer of `size` bytes, if known."""

    def moved(self, count: int) -> None:
        """Add transferred bytes."""

    def lines(self, name: str, status: str, counts: RequestCounts) -> None:
        """Update the lines of a batch, or of all batches of a run."""

    def waits(self, waits: Iterable[Waiting]) -> None:
        """Update the reasons why lines wait."""


class _Shown(Display):
    """Measures the rate of lines, and prints why lines wait."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._of_lines: TaskID | None = None
        self._said: set[tuple[Reason, str | None]] = set()

    def waits(self, waits: Iterable[Waiting]) -> None:
        """Print a stall whenever it begins; print a reason of normal operation once."""
        found = {(wait.reason, wait.server): wait for wait in waits}
        for key in found.keys() - self._said:
            lines = f"{counted(found[key].lines, self.unit)} {'waits' if found[key].lines == 1 else 'wait'}"
            self._console.print(f"{lines}: {found[key].message}", style="" if key[0] in USUAL else "yellow")
        self._said = {key for key in self._said if key[0] in USUAL} | found.keys()

    def lines(self, name: str, status: str, counts: RequestCounts) -> None:
        """Update the lines."""
        if self._of_lines is None:
            self._of_lines = self._progress.add_task(name, total=None, status=status, counts=counts)
        done = counts.completed + counts.failed
        self._progress.update(
            self._of_lines, total=counts.total or None, completed=done, status=status, counts=counts
        )


class _Name(ProgressColumn):
    """A name, cut to its end."""

    def render(self, task: Task) -> Text:
        return Text(shortened(task.description, NAME_CHARS).ljust(NAME_CHARS))


class _Bar(BarColumn):
    """A bar whose colour shows at the end how many lines failed."""

    def render(self, task: Task) -> ProgressBar:
        counts = task.fields.get("counts", RequestCounts(completed=1))
        self.finished_style = "red" if not counts.completed else "yellow" if counts.failed else "green"
        return super().render(task)


class _Count(DownloadColumn):
    """Bytes of a transfer, or lines of a batch."""

    def render(self, task: Task) -> Text:
        is_batch = "counts" in task.fields
        return Text(f"{task.completed:,.0f}/{task.total or 0:,.0f}") if is_batch else super().render(task)


class _State(TransferSpeedColumn):
    """The speed of a transfer, or the state of a batch, cut to the width that the bar leaves."""

    def render(self, task: Task) -> Text:
        is_batch = "counts" in task.fields
        return Text(state(task), no_wrap=True, overflow="ellipsis") if is_batch else super().render(task)


class Bars(_Shown):
    """Bars on a terminal: one for each transfer, one for the batch."""

    def __init__(self, console: Console) -> None:
        name, bar, count = (Column(no_wrap=True) for _ in range(3))
        columns = _Name(name), _Bar(BAR_CELLS, table_column=bar), _Count(table_column=count), _State()
        super().__init__(console, Progress(*columns, console=console, speed_estimate_period=RATE_SECONDS))
        self._transfer = TaskID(0)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def transfer(self, name: str, size: int | None) -> None:
        """Begin a transfer."""
        self._progress.start()
        self._transfer = self._progress.add_task(name, total=size)

    def moved(self, count: int) -> None:
        """Add transferred bytes."""
        self._progress.advance(self._transfer, count)

    def lines(self, name: str, status: str, counts: RequestCounts) -> None:
        """Update the lines."""
        self._progress.start()
        super().lines(name, status, counts)


class Lines(_Shown):
    """Plain lines for a log."""

    def __init__(self, console: Console, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, Progress(disable=True, get_time=monotonic, speed_estimate_period=RATE_SECONDS))
        self._monotonic = monotonic
        self._printed = ("", "", 0.0)
        """Status, text and time of the last line."""

    def transfer(self, name: str, size: int | None) -> None:
        """Begin a transfer."""
        self._console.print(f"{name}: {counted(size, 'byte')}" if size is not None else f"{name} …")

    def lines(self, name: str, status: str, counts: RequestCounts) -> None:
        """Print the state at a change of status, else when it differs from the last line, in bounded intervals."""
        super().lines(name, status, counts)
        now, done = self._monotonic(), counts.completed + counts.failed
        words = [f"{done:,} of {counted(counts.total, self.unit)}"] if counts.total else []
        words += [word] if (word := state(self._progress.tasks[0])) else []
        line = f"{name}: {', '.join(words)}"
        before, last, at = self._printed
        pause = 0.0 if status != before else PLAIN_SECONDS if line != last else IDLE_SECONDS
        if now - at >= pause:
            self._console.print(line)
            self._printed = status, line, now


def display(console: Console) -> Display:
    """Bars on a terminal, else plain lines."""
    return Bars(console) if console.is_terminal else Lines(console)
