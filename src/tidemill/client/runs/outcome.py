"""The result of a run of one or several batches, and its summary."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from tidemill.client.errors import Exit
from tidemill.client.http.client import Reason, Report
from tidemill.client.progress import Display, duration
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.terminal import Console
from tidemill.wording import counted

ROWS_MAX: Final = 20
"""Errors shown without --all."""
PLACES_MAX: Final = 3
"""Line numbers shown for a group of equal faults."""
SHORT: Final = 8
"""Characters of a shortened id, from its random end: enough to tell the batches of a project apart."""
_ORDER: Final = (Exit.FAILED, Exit.INEXACT, Exit.EXPIRED, Exit.CANCELLED, Exit.SOME_FAILED)
"""The exit code of a run is the first of these that any of its batches has."""


class Fault(msgspec.Struct, frozen=True):
    """A fault of a line of the input, or of the whole input."""

    line: int | None
    """Its line number, from 1; None for the whole input."""
    text: str


class BatchResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of a finished batch."""

    batch: str
    status: str
    began_at: int
    ended_at: int
    """Unix seconds."""
    total: int = 0
    completed: int = 0
    failed: int = 0
    """Lines that failed."""
    errors: int = 0
    """Lines of the error file."""
    copies: int = 0
    """Lines of both files that have the answer to an equal one."""
    tokens: tuple[int, int] = (0, 0)
    """Input and output tokens."""
    prices: tuple[float, float] | None = None
    """Cost of an input and of an output token; None if the service gives no cost."""
    refusals: tuple[Fault, ...] = ()
    reasons: tuple[Reason, ...] = ()
    unfinished: int = 0
    """Lines that a rerun would run; 0 if the service does not say."""
    damage: tuple[str, ...] = ()
    """How the results differ from the receipt or the input."""
    copied: str | None = None
    """Where the service copied the results to, or why it failed; None if no copy was requested."""
    is_copied: bool = True
    """False if a requested copy failed."""

    @property
    def exit(self) -> Exit:
        """The exit code."""
        match self.status:
            case Status.FAILED:
                return Exit.FAILED
            case _ if self.damage:
                return Exit.INEXACT
            case Status.EXPIRED:
                return Exit.EXPIRED
            case Status.CANCELLED:
                return Exit.CANCELLED
            case _:
                return Exit.SOME_FAILED if self.failed else Exit.OK


def result_of(batch: Batch, report: Report, damage: Iterable[str] = (), *, line: int = 1) -> BatchResult:
    """The result of a finished batch; `line` is the number of its first line in the file.

    `damage` says how the results differ from the receipt or the input.
    """
    counts, usage, receipt = batch.request_counts, batch.usage, batch.tidemill.receipt
    copy = batch.tidemill.output_copy
    return BatchResult(
        batch=batch.id,
        status=str(batch.status),
        began_at=batch.created_at,
        ended_at=max(batch.ended_at or 0, batch.created_at),
        total=counts.total,
        completed=counts.completed,
        failed=counts.failed,
        errors=receipt.errors.lines if receipt and receipt.errors else 0,
        copies=receipt.copies if receipt else 0,
        tokens=(usage.input_tokens, usage.output_tokens) if usage else (0, 0),
        prices=_prices(batch),
        refusals=_refusals(batch, line),
        reasons=report.data if batch.status is not Status.FAILED else (),
        unfinished=report.unfinished,
        damage=tuple(damage),
        copied=None if copy is None else copy.uri if copy.status == "done" else f"{copy.uri}: {copy.reason}",
        is_copied=copy is None or copy.status == "done",
    )


def _prices(batch: Batch) -> tuple[float, float] | None:
    cost, usage = batch.tidemill.cost, batch.usage
    if cost is None or usage is None:
        return None
    pairs = (cost.input, usage.input_tokens), (cost.output, usage.output_tokens)
    read, written = (float(amount / tokens) if tokens else 0.0 for amount, tokens in pairs)
    return read, written


def verdict(results: Sequence[BatchResult]) -> Exit:
    """The exit code of a run: that of its worst batch."""
    found = {result.exit for result in results}
    return next((code for code in _ORDER if code in found), Exit.OK)


def rejection(name: str, results: Sequence[BatchResult]) -> str | None:
    """The faults of the inputs that the service rejected, as a text; None if it rejected none."""
    rejected = [result for result in results if result.status == Status.FAILED]
    rows = _faults(rejected, show_all=False)
    more = [f"and {len(rows) - ROWS_MAX:,} more"] if len(rows) > ROWS_MAX else []
    return "\n  ".join((f"{name}: the service rejected the input", *rows[:ROWS_MAX], *more)) if rejected else None


def name_of(batch: Batch) -> str:
    """A batch in messages: its name and its shortened id."""
    return f"{batch.tidemill.name} ({batch.id[-SHORT:]})" if batch.tidemill.name else batch.id[-SHORT:]


def show(display: Display, batch: Batch) -> None:
    """Show the state of a batch."""
    display.lines(name_of(batch), str(batch.status), batch.request_counts)
    display.waits(batch.tidemill.waiting)


def style_of(*, completed: int, failed: int, ok: bool) -> str:
    """The colour of a result: green if all lines succeeded, red if none did."""
    return "green" if ok and not failed else "yellow" if completed else "red"


def summary(
    console: Console,
    name: str,
    results: Sequence[BatchResult],
    notes: Iterable[str] = (),
    *,
    show_all: bool = False,
) -> Exit:
    """Print the summary of a run, with more lines (`notes`), and return its exit code."""
    code, completed = verdict(results), sum(result.completed for result in results)
    style = style_of(completed=completed, failed=sum(result.failed for result in results), ok=code is Exit.OK)
    console.print(f"{name} {_headline(results, completed)}", style=style)
    for row in _shortened([*_faults(results, show_all=show_all), *_why(results)], show_all=show_all):
        console.print(f"  {row}")
    for line in notes:
        console.print(f"  {line}")
    for damage in (f"{result.batch[-SHORT:]}: {damage}" for result in results for damage in result.damage):
        console.print(f"  {damage}", style="red")
    for result in results:
        if result.copied is not None:
            words, colour = ("copied to", "none") if result.is_copied else ("not copied to", "red")
            console.print(f"  {words} {result.copied}", style=colour)
    if any(any(result.tokens) for result in results):
        read, written = (sum(result.tokens[side] for result in results) for side in (0, 1))
        console.print(f"  tokens: {read:,} in, {written:,} out")
    for row in _shortened([_offer(result) for result in results if result.unfinished], show_all=show_all):
        console.print(f"  {row}")
    return code


def _headline(results: Sequence[BatchResult], completed: int) -> str:
    total, failed = sum(result.total for result in results), sum(result.failed for result in results)
    words = results[0].status if len(results) == 1 else f"finished ({len(results):,} batches)"
    took = max(result.ended_at for result in results) - min(result.began_at for result in results)
    # Times of the service are whole seconds.
    when = f"after {duration(took)}" if took >= 1 else "within a second"
    if all(result.status == Status.FAILED for result in results):
        return f"{words} {when}: the input was rejected, no line was run"
    counts = [f"{completed:,} of {total:,} succeeded"]
    counts += [f"{failed:,} failed"] if failed else []
    counts += [f"{unrun:,} did not run"] if (unrun := total - completed - failed) > 0 else []
    return f"{words} {when}: {', '.join(counts)}"


def _offer(result: BatchResult) -> str:
    return (
        f"To rerun the {counted(result.unfinished, 'unfinished line')}: `tidemill rerun {result.batch[-SHORT:]}`"
    )


def _refusals(batch: Batch, first: int) -> tuple[Fault, ...]:
    return tuple(
        Fault(
            line=None if fault.line is None else fault.line + first - 1,
            text=f"{f' ({fault.param})' if fault.param else ''}: {fault.message} [{fault.code}]",
        )
        for fault in (batch.errors.data if batch.errors else ())
    )


def _faults(results: Sequence[BatchResult], *, show_all: bool) -> list[str]:
    """One row for each group of equal faults, with line numbers."""
    groups: dict[tuple[str, int | None], list[int | None]] = {}
    for fault in (fault for result in results for fault in result.refusals):
        groups.setdefault((fault.text, fault.line if show_all else None), []).append(fault.line)
    return [_places([line for line in found if line is not None]) + text for (text, _), found in groups.items()]


def _places(lines: list[int]) -> str:
    if len(lines) < 2:  # noqa: PLR2004 - a single line
        return f"line {lines[0]}" if lines else "file"
    more = f" and {len(lines) - PLACES_MAX:,} more" if len(lines) > PLACES_MAX else ""
    return f"lines {', '.join(map(str, lines[:PLACES_MAX]))}{more}"


def _why(results: Sequence[BatchResult]) -> list[str]:
    """One row for each reason why lines failed, the most frequent first."""
    found: dict[tuple[str | None, int | None], Reason] = {}
    for reason in (reason for result in results for reason in result.reasons):
        before = found.get(key := (reason.code, reason.status_code))
        found[key] = msgspec.structs.replace(
            before or reason, count=reason.count + (before.count if before else 0)
        )
    ranked = sorted(found.values(), key=lambda reason: -reason.count)
    codes = (" ".join(str(part) for part in (each.status_code, each.code) if part) for each in ranked)
    return [f"{each.count:,} x {code}: {each.message}" for each, code in zip(ranked, codes, strict=True)]


def _shortened(rows: list[str], *, show_all: bool) -> list[str]:
    if show_all or len(rows) <= ROWS_MAX:
        return rows
    return [*rows[:ROWS_MAX], f"and {len(rows) - ROWS_MAX:,} more: --all shows them"]
