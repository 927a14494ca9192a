"""Summarizes the rounds of a case, and formats the table. No I/O."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

Figures = Mapping[str, float]
"""The measurements of one run: `seconds`, `cpu_ms_per_line`, and more."""

_NOTHING: Final = "-"


@dataclass(frozen=True, kw_only=True)
class Round:
    """The product and the bare client, one after the other; None for a side that did not finish."""

    product: Figures | None
    bare: Figures | None

    @property
    def ratio(self) -> float | None:
        """The product's rate ÷ that of the bare client."""
        if self.product is None or self.bare is None:
            return None
        return self.bare["seconds"] / self.product["seconds"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The medians of all rounds of a case; a figure that no round has is missing.

    Attributes:
        ratio: The median of the rounds' ratios, not the ratio of the medians: the two sides of a round run close
            together, so that other load on the machine affects both.
        rounds: The number of rounds that have a ratio.
    """

    ratio: float | None
    rounds: int
    product: Figures
    bare: Figures

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> Self:
        """Summarize rounds."""
        ratios = [each.ratio for each in rounds if each.ratio is not None]
        return cls(
            ratio=statistics.median(ratios) if ratios else None,
            rounds=len(ratios),
            product=_medians(each.product for each in rounds),
            bare=_medians(each.bare for each in rounds),
        )


def _medians(found: Iterable[Figures | None]) -> Figures:
    runs = [run for run in found if run is not None]
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: statistics.median([run[name] for run in runs if name in run]) for name in names}


def quantile(values: list[float], part: float) -> float:
    """The value below which the share `part` of the values lies; 0 for no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def table(results: Mapping[str, Summary], before: Mapping[str, Summary]) -> str:
    """The results as text of at most 80 columns, beside those of an earlier run, if there are any."""
    columns = _COLUMNS if before else [column for column in _COLUMNS if not column.is_before]
    rows = [f"{'case':<{_NAME_CHARS}}" + "".join(f"{column.title:>{column.chars}}" for column in columns)]
    for name, result in results.items():
        cells = [_cell(before.get(name) if column.is_before else result, column) for column in columns]
        rows.append(f"{name:<{_NAME_CHARS}}" + "".join(cells))
    return "\n".join([*rows, _LEGEND])


@dataclass(frozen=True, kw_only=True)
class _Column:
    title: str
    chars: int
    side: str
    figure: str
    is_before: bool = False


_NAME_CHARS: Final = 21
_COLUMNS: Final = (
    _Column(title="ratio", chars=6, side="", figure="ratio"),
    _Column(title="before", chars=8, side="", figure="ratio", is_before=True),
    _Column(title="CPU", chars=8, side="product", figure="cpu_ms_per_line"),
    _Column(title="before", chars=8, side="product", figure="cpu_ms_per_line", is_before=True),
    _Column(title="bare", chars=8, side="bare", figure="cpu_ms_per_line"),
    _Column(title="seconds", chars=10, side="product", figure="seconds"),
    _Column(title="bare", chars=9, side="bare", figure="seconds"),
)
_SMALL: Final = 1.0
_LARGE: Final = 1000.0
_LEGEND: Final = "ratio: lines/s of the product ÷ bare client; CPU: ms a line, without Kafka"


def _cell(result: Summary | None, column: _Column) -> str:
    figures: Figures = {}
    if result is not None:
        ratio = {} if result.ratio is None else {"ratio": result.ratio}
        figures = {"product": result.product, "bare": result.bare}.get(column.side, ratio)
    found = figures.get(column.figure)
    return f"{_text(found):>{column.chars}}"


def _text(number: float | None) -> str:
    """The number with its significant digits only."""
    if number is None:
        return _NOTHING
    return f"{number:.3f}" if number < _SMALL else f"{number:.2f}" if number < _LARGE else f"{number:.0f}"
