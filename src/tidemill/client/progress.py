"""Progress of a batch on stderr: lines, rate and time left, as bars or as plain lines."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol, Self

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from tidemill.schemas.resources.batch import RequestCounts, Status
from tidemill.schemas.resources.waiting import USUAL, Reason, Waiting
from tidemill.terminal import Console, counted

PACE_SECONDS = 30.0
"""Window of the rate."""
SAMPLES_MAX = 600
PLAIN_SECONDS = 10.0
"""Without a terminal, minimum interval of lines with the same status."""
IDLE_SECONDS = 60.0
"""Without a terminal, interval of lines that repeat the one before."""
NAME_CHARS = 14
BAR_CELLS = 16
TERMINAL = frozenset(str(status) for status in Status if status.is_terminal)
SECOND, MINUTE, HOUR = 1, 60, 3600


class Pace:
    """Lines per second over the recent past."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX)

    def add(self, now: float, done: int) -> None:
        """Add a sample: `done` lines had a result at `now` seconds."""
        while self._samples and now - self._samples[0][0] > PACE_SECONDS:
            self._samples.popleft()
        self._samples.append((now, done))

    @property
    def rate(self) -> float:
        """Lines per second; 0 if unknown."""
        if len(self._samples) < 2:  # noqa: PLR2004 - a rate needs two points
            return 0.0
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return max(0.0, (after - before) / (end - start)) if end > start else 0.0

    def seconds_left(self, left: int) -> float | None:
        """Seconds that `left` lines will take; None if unknown."""
        return left / self.rate if self.rate > 0 else None


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


def state(status: str, counts: RequestCounts, pace: Pace) -> str:
    """The text beside the bar, short enough for 80 columns."""
    words = [status] if status != Status.IN_PROGRESS or not counts.total else []
    if counts.failed:
        words.append(f"{counts.failed:,} failed")
    if status not in TERMINAL and pace.rate:
        words.append(f"{pace.rate:,.1f}/s")
        left = pace.seconds_left(counts.total - counts.completed - counts.failed)
        words += [f"{duration(left)} left"] if left else []
    return ", ".join(words)


class Stalls:
    """Prints why lines wait: a stall whenever it begins, and once what they wait for in normal operation."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: set[tuple[Reason, str | None]] = set()

    def see(self, waits: Iterable[Waiting]) -> None:
        """Update what lines wait for."""
        found = {(wait.reason, wait.server): wait for wait in waits}
        for key in found.keys() - self._said:
            lines = f"{counted(found[key].lines, 'line')} {'waits' if found[key].lines == 1 else 'wait'}"
            self._console.print(f"{lines}: {found[key].message}", style="" if key[0] in USUAL else "yellow")
        self._said = {key for key in self._said if key[0] in USUAL} | found.keys()


class Display(Protocol):
    """Shows progress; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def transfer(self, name: str, size: int | None) -> None:
        """Begin a transfer of `size` bytes, if known."""

    def moved(self, count: int) -> None:
        """Add transferred bytes."""

    def lines(self, name: str, status: str, counts: RequestCounts) -> None:
        """Update the lines of a batch, or of all batches of a run."""

    def waits(self, waits: Iterable[Waiting]) -> None:
        """Update what lines wait for."""


class _Name(ProgressColumn):
    """A name, cut to its end, which tells more than its beginning."""

    def render(self, task: Task) -> Text:
        name = task.description
        return Text(f"{name if len(name) <= NAME_CHARS else f'…{name[1 - NAME_CHARS :]}':<{NAME_CHARS}}")


class _State(ProgressColumn):
    """The state, cut to the width that the bar leaves."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["state"], no_wrap=True, overflow="ellipsis")


class Bars:
    """Bars on a terminal: one for transfers, one for the batch."""

    def __init__(self, console: Console) -> None:
        common = {"console": console, "transient": False, "expand": False}
        self._bytes = Progress(
            _Name(Column(no_wrap=True)),
            BarColumn(BAR_CELLS, finished_style="green", table_column=Column(no_wrap=True)),
            DownloadColumn(),
            TransferSpeedColumn(),
            **common,  # type: ignore[arg-type]
        )
        self._bar = BarColumn(BAR_CELLS, finished_style="green", table_column=Column(no_wrap=True))
        self._lines = Progress(
            _Name(Column(no_wrap=True)),
            self._bar,
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            _State(),
            **common,  # type: ignore[arg-type]
        )
        self.waits = Stalls(console).see
        self._active: Progress | None = None
        self._task = TaskID(0)
        self._pace = Pace()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            self._active.stop()

    def transfer(self, name: str, size: int | None) -> None:
        """Begin a transfer."""
        self._show(self._bytes)
        self._task = self._bytes.add_task(name, total=size)

    def moved(self, count: int) -> None:
        """Add transferred bytes."""
        self._bytes.advance(self._task, count)

    def lines(self, name: str, status: str, counts: RequestCounts) -> None:
        """Update the lines."""
        if self._active is not self._lines:
            self._show(self._lines)
            self._task = self._lines.add_task(name, total=0, state="")
        done = counts.completed + counts.failed
        if counts.total:
            self._pace.add(time.monotonic(), done)
        shown = state(status, counts, self._pace)
        self._bar.finished_style = "red" if not counts.completed else "yellow" if counts.failed else "green"
        self._lines.update(self._task, total=counts.total, completed=done, state=shown)

    def _show(self, progress: Progress) -> None:
        # Two live displays cannot share a terminal, so the one before stops.
        if self._active is not progress:
            if self._active:
                self._active.stop()
            progress.start()
        self._active = progress


class Lines:
    """Plain lines for a log."""

    def __init__(self, console: Console, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._monotonic = monotonic
        self.waits = Stalls(console).see
        self._pace = Pace()
        self._printed = ("", "", 0.0)
        """Status, text and time of the last line."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace

    def transfer(self, name: str, size: int | None) -> None:
        """Begin a transfer."""
        self._console.print(f"{name}: {size:,} bytes" if size is not None else f"{name} …")

    def moved(self, count: int) -> None:
        """Add transferred bytes."""
        del count

    def lines(self, name: str, status: str, counts: RequestCounts) -> None:
        """Print the state at a change of status, else when it differs from the last line, in bounded intervals."""
        now, done = self._monotonic(), counts.completed + counts.failed
        if counts.total:
            self._pace.add(now, done)
        words = [f"{done:,} of {counts.total:,} lines"] if counts.total else []
        words += [word] if (word := state(status, counts, self._pace)) else []
        line = f"{name}: {', '.join(words)}"
        before, last, at = self._printed
        pause = 0.0 if status != before else PLAIN_SECONDS if line != last else IDLE_SECONDS
        if now - at >= pause:
            self._console.print(line)
            self._printed = status, line, now


class Silence:
    """Shows nothing, for parts of a whole that is shown."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace

    def transfer(self, name: str, size: int | None) -> None:
        """Nothing."""

    def moved(self, count: int) -> None:
        """Nothing."""

    def lines(self, name: str, status: str, counts: RequestCounts) -> None:
        """Nothing."""

    def waits(self, waits: Iterable[Waiting]) -> None:
        """Nothing."""


def display(console: Console) -> Display:
    """Bars on a terminal, else plain lines."""
    return Bars(console) if console.is_terminal else Lines(console)
