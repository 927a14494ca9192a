"""The arithmetic of the bench: ratios, medians, rounds that are missing, and the table."""

import pytest

from tidemill.bench.report import Round, Summary, quantile, table


def run(seconds: float, cpu: float = 0.1) -> dict[str, float]:
    """The figures of one side."""
    return {"seconds": seconds, "cpu_ms_per_line": cpu}


def test_the_ratio_is_the_median_of_the_pairs() -> None:
    """Of 0.5, 0.25 and 0.1, and not that of the medians, 1 ÷ 8: a slow minute weighs on both sides of a pair."""
    rounds = [Round(product=run(p), bare=run(b)) for p, b in ((2.0, 1.0), (8.0, 2.0), (10.0, 1.0))]
    found = Summary.of(rounds)
    assert found.ratio == pytest.approx(0.25)
    assert found.product["seconds"] == 8.0
    assert found.bare["seconds"] == 1.0
    assert found.rounds == 3


def test_a_side_that_failed_is_missing_in_its_round() -> None:
    """The other side's figures still count; the ratio is of whole rounds."""
    rounds = [Round(product=run(4.0), bare=None), Round(product=None, bare=run(1.0))]
    assert Summary.of(rounds).ratio is None
    rounds.append(Round(product=run(2.0), bare=run(1.0)))
    found = Summary.of(rounds)
    assert (found.ratio, found.rounds) == (0.5, 1)
    assert found.product["seconds"] == 3.0


def test_a_figure_that_one_round_lacks() -> None:
    """Its median is over the rounds that have it."""
    rounds = [Round(product={**run(1.0), "refused": 4.0}, bare=None), Round(product=run(1.0), bare=None)]
    assert Summary.of(rounds).product["refused"] == 4.0


def test_no_rounds() -> None:
    """Nothing is known, and nothing fails."""
    found = Summary.of([])
    assert (found.ratio, found.product, found.bare) == (None, {}, {})


def test_the_table_fits_a_terminal_and_shows_the_earlier_run() -> None:
    """In 80 columns, also with huge numbers; a case that the earlier run lacks has no earlier figures."""
    now = Summary(ratio=0.5, rounds=1, product=run(1234567.0, 1375.0), bare=run(2.0, 0.009))
    earlier = Summary(ratio=0.25, rounds=1, product=run(4.0, 0.2), bare=run(2.0))
    text = table({"backlog-of-a-million": now, "other": now}, {"backlog-of-a-million": earlier})
    rows = text.splitlines()
    assert max(map(len, rows)) <= 80
    assert rows[1].split() == [
        "backlog-of-a-million",
        "0.500",
        "0.250",
        "1375",
        "0.200",
        "0.009",
        "1234567",
        "2.00",
    ]
    assert rows[2].split()[1:] == ["0.500", "-", "1375", "-", "0.009", "1234567", "2.00"]


def test_without_an_earlier_run_the_table_has_no_columns_for_it() -> None:
    """And a failed case has no figures."""
    rows = table({"a": Summary.of([])}, {}).splitlines()
    assert rows[0].split() == ["case", "ratio", "CPU", "bare", "seconds", "bare"]
    assert rows[1].split() == ["a", "-", "-", "-", "-", "-"]


def test_quantiles() -> None:
    """0 for no values."""
    assert quantile([], 0.99) == 0
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
