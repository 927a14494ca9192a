"""Shows a sample of rows with their answers, and an estimate for all rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from tidemill.tables import pieces
from tidemill.tables.values import rows_of
from tidemill.terminal import Console, tabulated, words
from tidemill.wording import counted

CELL_CHARS_MAX: Final = 80
COLUMNS_MAX: Final = 6
ROWS_MAX: Final = 20
UNKNOWN_ROWS: Final = 1_000
"""The estimate is per this many rows if the source does not know their number."""


def show(console: Console, piece: Path, kept: Sequence[str], error: str, total: int | None) -> None:
    """Print the first rows of a piece, and an estimate for `total` rows from their tokens.

    0 is an unknown number of rows; with None there is no estimate.
    """
    fields: list[str] = []
    found: list[dict[str, Any]] = []
    for batch in pieces.batches([piece]):
        fields = batch.schema.names
        found += rows_of(batch)
        if len(found) >= ROWS_MAX:
            break
    if not found:
        return
    answers = fields[len(kept) : fields.index(error)]
    shown = [*kept[: max(1, COLUMNS_MAX - len(answers))], *(answers[1:] or answers)[:COLUMNS_MAX]]
    if any(row[error] for row in found):
        # The text of a valid answer repeats its values; that of another one says what the model did.
        shown += [error, answers[0]] if answers[1:] else [error]
        found = [row if row[error] or not answers[1:] else {**row, answers[0]: None} for row in found]
    console.print(
        tabulated(
            [words(name) for name in shown],
            [[_cell(row[name], is_vector=name in answers) for name in shown] for row in found[:ROWS_MAX]],
            console.width,
        )
    )
    if total is not None:
        console.print(_estimate(found, fields[fields.index(error) + 2 :], total))


def has_answer(piece: Path, error: str) -> bool:
    """Whether a row of a piece has a valid answer."""
    return any(batch.column(error).null_count for batch in pieces.batches([piece]))


def _cell(value: Any, *, is_vector: bool) -> str:
    if isinstance(value, bytes):
        if not is_vector:
            return counted(len(value), "byte")
        vector = pa.Array.from_buffers(pa.float32(), len(value) // 4, [None, pa.py_buffer(value)])
        return f"{len(vector)} x float32: {', '.join(f'{each:.3f}' for each in vector[:3].to_pylist())}, …"
    text = "" if value is None else " ".join(str(value)[: 4 * CELL_CHARS_MAX].split())
    return text if len(text) <= CELL_CHARS_MAX else f"{text[: CELL_CHARS_MAX - 1]}…"


def _estimate(found: Sequence[Mapping[str, Any]], facts: Sequence[str], total: int) -> str:
    read, written = (sum(row[name] for row in found) for name in facts[:2])
    costs = [row[facts[2]] for row in found]
    share = (total or UNKNOWN_ROWS) / len(found)
    rows = counted(total, "row") if total else f"each {UNKNOWN_ROWS:,} rows"
    words_ = [f"{rows}: about {counted(round(read * share), 'token')} in, {written * share:,.0f} out"]
    if None not in costs and any(costs):
        words_.append(f"cost {sum(costs) * share:,.4g}")
    return f"{', '.join(words_)} (from {counted(len(found), 'row')})"
