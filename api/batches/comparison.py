"""Compares the results of two ended batches, line by line: a bounded part of them for each request.

Both list their lines in the order of their inputs. Lines with the same `custom_id` are paired if they come in the
same order in both: in two batches of one file, of files made alike for two models, and in a batch and its rerun.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import orjson

from tidemill.api.batches import result_pages
from tidemill.api.dependencies import Dependencies
from tidemill.api.view.result_lines import Found
from tidemill.runtime.threads import run_half_time
from tidemill.schemas.resources.batch import Batch

WINDOW_LINES: Final = 1_000
"""Lines of each batch that one request reads at most; a line's pair must be among them."""
WINDOW_BYTES_MAX: Final = 4 << 20
PAGE_BYTES_MAX: Final = 4 << 20
SCAN_LINES_MAX: Final = 20_000
"""Pairs that one request compares at most to find those that it shows."""
SCAN_BYTES_MAX: Final = 8 << 20
"""Bytes of lines after which a request compares no further."""
ANSWERS: Final = ("choices", "data", "output", "content", "results", "text", "segments")
"""Fields of a reply with the answer; others, like its id, time and usage, differ in each reply."""
_IDS: Final = frozenset({"id", "call_id", "tool_use_id"})


class Outcome(StrEnum):
    """How the results of a line differ."""

    SAME = "same"
    DIFFERENT = "different"
    """Both have an answer."""
    FIRST_FAILED = "first_failed"
    """Only the second batch has an answer."""
    SECOND_FAILED = "second_failed"
    BOTH_FAILED = "both_failed"
    ONLY_FIRST = "only_first"
    """The second batch has no such line."""
    ONLY_SECOND = "only_second"


@dataclass(frozen=True, slots=True)
class Side:
    """A line of one of the batches, and its text in the output or error file."""

    found: Found
    text: bytes
    custom_id: str
    """Empty if the input line has none that can be read; such a line has no pair."""


@dataclass(frozen=True)
class Pair:
    """The line with a `custom_id` in either batch."""

    outcome: Outcome
    first: Side | None
    second: Side | None


@dataclass
class Comparison:
    """A part of a comparison."""

    pairs: list[Pair] = field(default_factory=list)
    """The pairs to show."""
    counts: Counter[Outcome] = field(default_factory=Counter)
    """Outcomes of all compared pairs, shown or not."""
    bytes: int = 0
    """Bytes of all compared lines."""
    shown_bytes: int = 0
    end: tuple[int, int] | None = None
    """The last indices that it has read; None if it has read all."""

    def add(self, pair: Pair, wanted: "Wanted") -> None:
        """Count a pair, and show it if it is wanted."""
        size = sum(len(side.text) for side in (pair.first, pair.second) if side is not None)
        self.counts[pair.outcome] += 1
        self.bytes += size
        if wanted.limit and pair.outcome in wanted.outcomes:
            self.pairs.append(pair)
            self.shown_bytes += size

    def is_full(self, wanted: "Wanted") -> bool:
        """Whether it shows as much as one answer may have."""
        return 0 < wanted.limit <= len(self.pairs) or self.shown_bytes >= PAGE_BYTES_MAX


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which pairs to show, and how many."""

    limit: int
    """With 0 all are counted and none is shown."""
    outcomes: frozenset[Outcome] = frozenset(Outcome)


@dataclass
class _Window:
    """The next lines of a batch, and those of them that are left."""

    sides: list[Side]
    is_last: bool
    """Whether the batch has no line after them."""
    after: int
    place: int = 0

    def __post_init__(self) -> None:
        self._places = {side.custom_id: place for place, side in enumerate(self.sides)}

    @property
    def next(self) -> Side | None:
        return self.sides[self.place] if self.place < len(self.sides) else None

    def has(self, side: Side) -> bool:
        """Whether a line with this `custom_id` comes later."""
        return bool(side.custom_id) and self._places.get(side.custom_id, -1) >= self.place

    def take(self) -> Side:
        side = self.sides[self.place]
        self.place += 1
        self.after = side.found.index
        return side


async def compare(
    deps: Dependencies, project: str, batches: tuple[Batch, Batch], after: tuple[int, int], wanted: Wanted
) -> Comparison:
    """Compare the lines after these indices of the first and the second batch, as far as one request does.

    Raises:
        ApiError: 503, the store does not answer.
    """
    found = Comparison()
    # All lines of a rerun are lines of its batch.
    is_rerun = batches[0].tidemill.rerun_of == batches[1].id
    while True:
        first = await _window(deps, project, batches[0], after[0])
        second = await _window(deps, project, batches[1], after[1])
        await run_half_time(_pair, first, second, found, wanted, is_rerun=is_rerun)
        after = first.after, second.after
        if first.is_last and second.is_last and first.next is None and second.next is None:
            return found
        if found.is_full(wanted) or found.bytes >= SCAN_BYTES_MAX or found.counts.total() >= SCAN_LINES_MAX:
            found.end = after
            return found


async def _window(deps: Dependencies, project: str, batch: Batch, after: int) -> _Window:
    page = await result_pages.page(deps, project, batch, after=after, limit=WINDOW_LINES + 1)
    size, kept = 0, 0
    for kept, line in enumerate(page[:WINDOW_LINES]):
        size += line.end - line.start
        if size > WINDOW_BYTES_MAX and kept:
            break
    else:
        kept = min(len(page), WINDOW_LINES)
    texts = await result_pages.texts(deps, page[:kept])
    sides = [Side(found, text, result_pages.parse(text).name) for found, text in zip(page, texts, strict=False)]
    return _Window(sides=sides, is_last=kept == len(page), after=after)


def _pair(first: _Window, second: _Window, found: Comparison, wanted: Wanted, *, is_rerun: bool) -> None:
    """Compare the lines of two windows, until the page is full or a pair may be in the next window."""
    while not found.is_full(wanted):
        left, right = first.next, second.next
        if left is None and right is None:
            break
        if (left is None and not first.is_last) or (right is None and not second.is_last):
            break
        if left is not None and right is not None and left.custom_id == right.custom_id != "":
            pair = _compared(first.take(), second.take())
        elif right is None or (left is not None and _comes_first(first, second, left, right, is_rerun=is_rerun)):
            pair = Pair(Outcome.ONLY_FIRST, first.take(), None)
        else:
            pair = Pair(Outcome.ONLY_SECOND, None, second.take())
        found.add(pair, wanted)


def _comes_first(first: _Window, second: _Window, left: Side, right: Side, *, is_rerun: bool) -> bool:
    """Whether the next line of the first batch has no pair in the second batch, and comes first."""
    if first.has(right):
        return True
    return not second.has(left) and not is_rerun


def _compared(left: Side, right: Side) -> Pair:
    match left.found.failed, right.found.failed:
        case True, True:
            outcome = Outcome.BOTH_FAILED
        case True, False:
            outcome = Outcome.FIRST_FAILED
        case False, True:
            outcome = Outcome.SECOND_FAILED
        case _:
            outcome = Outcome.SAME if answer(left.text) == answer(right.text) else Outcome.DIFFERENT
    return Pair(outcome, left, right)


def answer(text: bytes) -> Any:
    """The answer in a line of an output file, without what differs in each reply; an unreadable line itself."""
    try:
        body = (orjson.loads(text).get("response") or {}).get("body")
    except ValueError:
        return text
    if not isinstance(body, dict) or not (kept := {name: body[name] for name in ANSWERS if name in body}):
        return body
    return {
        name: [_without_ids(each) for each in value] if isinstance(value, list) else value
        for name, value in kept.items()
    }


def _without_ids(item: Any) -> Any:
    """An item of an answer without its ids, and those of the tool calls in its message: servers draw new ones."""
    if not isinstance(item, dict):
        return item
    kept = {name: value for name, value in item.items() if name not in _IDS}
    message = kept.get("message")
    if isinstance(message, dict) and isinstance(calls := message.get("tool_calls"), list):
        kept["message"] = {**message, "tool_calls": [_without_ids(call) for call in calls]}
    return kept
