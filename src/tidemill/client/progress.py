"""How far a batch is: rate and time left, and the bar or the plain lines that show it on stderr."""

import time
from collections import deque
from types import TracebackType
from typing import Protocol, Self

from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from tidemill.schemas.batch import Batch
from tidemill.terminal import Console

PACE_SECONDS = 30.0
"""The rate is that of so much of the past."""
SAMPLES_MAX = 600
PLAIN_SECONDS = 10.0
"""Without a terminal a line is written when the state changes, else no more often than this."""
SECOND, MINUTE, HOUR = 1, 60, 3600


class Pace:
    """Lines per second over the recent past; knows no clock."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX)

    def add(self, now: float, done: int) -> None:
        """Note that at `now` seconds `done` lines were final."""
        while self._samples and now - self._samples[0][0] > PACE_SECONDS:
            self._samples.popleft()
        self._samples.append((now, done))

    @property
    def rate(self) -> float:
        """Lines per second; 0 while nothing is known."""
        if len(self._samples) < 2:  # noqa: PLR2004 - a rate needs two points
            return 0.0
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return max(0.0, (after - before) / (end - start)) if end > start else 0.0

    def seconds_left(self, left: int) -> float | None:
        """How long `left` lines will take, or None while that cannot be told."""
        return left / self.rate if self.rate > 0 else None


def duration(seconds: float) -> str:
    """A length of time as people write it: `0.4 s`, `42 s`, `3:05 min`, `2:03:09 h`."""
    if seconds < 10:  # noqa: PLR2004 - tenths matter only of a small number
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE}:{whole % MINUTE:02} min"
    return f"{whole // HOUR}:{whole % HOUR // MINUTE:02}:{whole % MINUTE:02} h"


def state(batch: Batch, pace: Pace) -> str:
    """What there is to say of a batch, beside the bar."""
    counts = batch.request_counts
    words = [str(batch.status)]
    if counts.total:
        words.append(f"{counts.completed:,} done")
        if counts.failed:
            words.append(f"{counts.failed:,} failed")
    if not batch.status.is_terminal and pace.rate:
        words.append(f"{pace.rate:,.1f} lines/s")
        left = pace.seconds_left(counts.total - counts.completed - counts.failed)
        words += [f"{duration(left)} left"] if left else []
    return ", ".join(words)


class Display(Protocol):
    """Where progress is shown; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def transfer(self, name: str, size: int | None) -> None:
        """From now on bytes move: `size` of them, where that is known."""

    def moved(self, count: int) -> None:
        """So many more bytes have moved."""

    def batch(self, batch: Batch) -> None:
        """The batch as it is now."""


class Bars:
    """Bars on a terminal: one for the bytes that move, one for the batch."""

    def __init__(self, console: Console) -> None:
        common = {"console": console, "transient": False, "expand": False}
        self._bytes = Progress(
            TextColumn("{task.description:<10}", markup=False),
            BarColumn(30, finished_style="green"),
            DownloadColumn(),
            TransferSpeedColumn(),
            **common,  # type: ignore[arg-type]
        )
        self._lines = Progress(
            TextColumn("{task.description:<10}", markup=False),
            BarColumn(30, finished_style="green"),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[state]}", markup=False),
            **common,  # type: ignore[arg-type]
        )
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
        """From now on bytes move."""
        self._show(self._bytes)
        self._task = self._bytes.add_task(name, total=size)

    def moved(self, count: int) -> None:
        """So many more bytes have moved."""
        self._bytes.advance(self._task, count)

    def batch(self, batch: Batch) -> None:
        """The batch as it is now."""
        if self._active is not self._lines:
            self._show(self._lines)
            self._task = self._lines.add_task("batch", total=0, state="")
        counts = batch.request_counts
        done = counts.completed + counts.failed
        if counts.total:
            self._pace.add(time.monotonic(), done)
        shown = state(batch, self._pace)
        self._lines.update(self._task, total=counts.total, completed=done, state=shown)

    def _show(self, progress: Progress) -> None:
        # Two live displays cannot share a terminal, so the one before is left as it stands.
        if self._active is not progress:
            if self._active:
                self._active.stop()
            progress.start()
        self._active = progress


class Lines:
    """Plain lines, now and then, for a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace = Pace()
        self._shown: tuple[str, float] = ("", 0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace

    def transfer(self, name: str, size: int | None) -> None:
        """From now on bytes move."""
        self._console.print(f"{name}: {size:,} bytes" if size is not None else f"{name} …")

    def moved(self, count: int) -> None:
        """So many more bytes have moved."""
        del count

    def batch(self, batch: Batch) -> None:
        """The batch as it is now."""
        now = time.monotonic()
        if batch.request_counts.total:
            self._pace.add(now, batch.request_counts.completed + batch.request_counts.failed)
        status, last = self._shown
        if batch.status != status or now - last >= PLAIN_SECONDS:
            total = batch.request_counts.total
            of = f" of {total:,} lines" if total else ""
            self._console.print(f"{batch.id}{of}: {state(batch, self._pace)}")
            self._shown = (batch.status, now)


class Silence:
    """Shows nothing, for what is a part of something that is shown."""

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

    def batch(self, batch: Batch) -> None:
        """Nothing."""


def display(console: Console) -> Display:
    """Bars where there is a terminal, else plain lines."""
    return Bars(console) if console.is_terminal else Lines(console)
