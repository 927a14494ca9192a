"""How a run of one batch or of many ended, and the sentences that say so."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from tidemill.client.exit_codes import Exit
from tidemill.client.progress import duration
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.terminal import Console

ROWS_MAX: Final = 20
"""Faults and reasons that are shown, unless all are asked for."""
PLACES_MAX: Final = 3
"""Lines that a group of equal faults names."""
SHORT: Final = 8
"""The last characters of an id, which are random: enough to tell the batches of a project apart."""
_ORDER: Final = (Exit.FAILED, Exit.INEXACT, Exit.EXPIRED, Exit.CANCELLED, Exit.SOME_FAILED)
"""How a whole run ends: the first of these that any of its batches has."""


class Fault(msgspec.Struct, frozen=True):
    """What was wrong with a line of the input, or with all of it."""

    line: int | None
    """The first is 1."""
    text: str


class Reason(msgspec.Struct, frozen=True):
    """Why lines failed."""

    code: str
    status: int | None
    """Of HTTP, where there was an answer."""
    count: int
    message: str
    """Of one of them."""


class End(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a batch ended."""

    batch: str
    status: str
    began_at: int
    ended_at: int
    """Unix seconds."""
    total: int = 0
    completed: int = 0
    failed: int = 0
    """Lines that were run and failed."""
    errors: int = 0
    """Lines of the error file."""
    tokens: tuple[int, int] = (0, 0)
    """Read and written."""
    refusals: tuple[Fault, ...] = ()
    reasons: tuple[Reason, ...] = ()
    unfinished: int = 0
    """Lines that a rerun takes; 0 where the service does not say."""
    damage: tuple[str, ...] = ()
    """In what the results do not fit their receipt or their input."""

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


def end_of(batch: Batch, report: dict[str, Any] | None, damage: Iterable[str] = (), *, line: int = 1) -> End:
    """How a batch ended.

    Args:
        batch: It, in a final state.
        report: Its errors by code, as the service tells them; None where it does not.
        damage: What was found to be wrong with its results.
        line: Where its input begins in the file.
    """
    counts, usage, receipt = batch.request_counts, batch.usage, batch.tidemill.receipt
    ended_at = batch.completed_at or batch.failed_at or batch.expired_at or batch.cancelled_at
    return End(
        batch=batch.id,
        status=str(batch.status),
        began_at=batch.created_at,
        ended_at=max(ended_at or 0, batch.created_at),
        total=counts.total,
        completed=counts.completed,
        failed=counts.failed,
        errors=receipt.errors.lines if receipt and receipt.errors else 0,
        tokens=(usage.input_tokens, usage.output_tokens) if usage else (0, 0),
        refusals=_refusals(batch, line),
        reasons=_reasons(report) if batch.status is not Status.FAILED else (),
        unfinished=int((report or {}).get("unfinished", 0)),
        damage=tuple(damage),
    )


def verdict(ends: Sequence[End]) -> Exit:
    """How a run of these batches ends: as the worst of them."""
    found = {end.exit for end in ends}
    return next((code for code in _ORDER if code in found), Exit.OK)


def name_of(batch: Batch) -> str:
    """What a batch is called where it is shown: its name and the short form of its id."""
    return f"{batch.tidemill.name} ({batch.id[-SHORT:]})" if batch.tidemill.name else batch.id[-SHORT:]


def style_of(*, completed: int, failed: int, ok: bool) -> str:
    """The colour of what has ended: green only where every line succeeded, red where none did."""
    return "green" if ok and not failed else "yellow" if completed else "red"


def summary(
    talk: Console, name: str, ends: Sequence[End], told: Iterable[str] = (), *, everything: bool = False
) -> Exit:
    """Say what came of a run.

    Args:
        talk: Where to.
        name: What it is called.
        ends: Its batches.
        told: What else was found, in sentences.
        everything: Show every fault and every reason.

    Returns:
        The exit code.
    """
    code, completed = verdict(ends), sum(end.completed for end in ends)
    style = style_of(completed=completed, failed=sum(end.failed for end in ends), ok=code is Exit.OK)
    talk.print(f"{name} {_headline(ends, completed)}", style=style)
    for row in _shortened([*_faults(ends, everything=everything), *_why(ends)], everything=everything):
        talk.print(f"  {row}")
    for line in told:
        talk.print(f"  {line}")
    for damage in (f"{end.batch[-SHORT:]}: {damage}" for end in ends for damage in end.damage):
        talk.print(f"  {damage}", style="red")
    if any(any(end.tokens) for end in ends):
        read, written = (sum(end.tokens[side] for end in ends) for side in (0, 1))
        talk.print(f"  tokens: {read:,} in, {written:,} out")
    for row in _shortened([_offer(end) for end in ends if end.unfinished], everything=everything):
        talk.print(f"  {row}")
    return code


def lines_of(count: int) -> str:
    """So many lines."""
    return f"{count:,} {'line' if count == 1 else 'lines'}"


def _headline(ends: Sequence[End], completed: int) -> str:
    total, failed = sum(end.total for end in ends), sum(end.failed for end in ends)
    words = ends[0].status if len(ends) == 1 else f"is over ({len(ends):,} batches)"
    took = max(end.ended_at for end in ends) - min(end.began_at for end in ends)
    # The service counts in whole seconds.
    when = f"after {duration(took)}" if took >= 1 else "within a second"
    if all(end.status == Status.FAILED for end in ends):
        return f"{words} {when}: the input was refused, no line was run"
    counts = [f"{completed:,} of {total:,} succeeded"]
    counts += [f"{failed:,} failed"] if failed else []
    counts += [f"{unrun:,} did not run"] if (unrun := total - completed - failed) > 0 else []
    return f"{words} {when}: {', '.join(counts)}"


def _offer(end: End) -> str:
    return f"To run the {lines_of(end.unfinished)} that did not succeed: `tidemill rerun {end.batch[-SHORT:]}`"


def _refusals(batch: Batch, first: int) -> tuple[Fault, ...]:
    return tuple(
        Fault(
            line=None if fault.line is None else fault.line + first - 1,
            text=f"{f' ({fault.param})' if fault.param else ''}: {fault.message} [{fault.code}]",
        )
        for fault in (batch.errors.data if batch.errors else ())
    )


def _reasons(report: dict[str, Any] | None) -> tuple[Reason, ...]:
    return tuple(
        Reason(
            code=str(group["code"]),
            status=group["status_code"],
            count=int(group["count"]),
            message=str(group["samples"][0]["message"]) if group["samples"] else "",
        )
        for group in (report or {}).get("data", ())
    )


def _faults(ends: Sequence[End], *, everything: bool) -> list[str]:
    """Equal faults in one row, with the lines that have them."""
    groups: dict[tuple[str, int | None], list[int | None]] = {}
    for fault in (fault for end in ends for fault in end.refusals):
        groups.setdefault((fault.text, fault.line if everything else None), []).append(fault.line)
    return [_places([line for line in found if line is not None]) + text for (text, _), found in groups.items()]


def _places(lines: list[int]) -> str:
    if len(lines) < 2:  # noqa: PLR2004 - a row of its own
        return f"line {lines[0]}" if lines else "file"
    more = f" and {len(lines) - PLACES_MAX:,} more" if len(lines) > PLACES_MAX else ""
    return f"lines {', '.join(map(str, lines[:PLACES_MAX]))}{more}"


def _why(ends: Sequence[End]) -> list[str]:
    """Why lines failed, the most frequent first."""
    found: dict[tuple[str, int | None], Reason] = {}
    for reason in (reason for end in ends for reason in end.reasons):
        before = found.get(key := (reason.code, reason.status))
        found[key] = msgspec.structs.replace(
            before or reason, count=reason.count + (before.count if before else 0)
        )
    ranked = sorted(found.values(), key=lambda reason: -reason.count)
    return [
        f"{reason.count:,} x {f'{reason.status} ' if reason.status else ''}{reason.code}: {reason.message}"
        for reason in ranked
    ]


def _shortened(rows: list[str], *, everything: bool) -> list[str]:
    if everything or len(rows) <= ROWS_MAX:
        return rows
    return [*rows[:ROWS_MAX], f"and {len(rows) - ROWS_MAX:,} more: --all shows them"]
