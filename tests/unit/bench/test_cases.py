"""The cases of the bench, their inputs and their table."""

import orjson
import pytest

from tidemill.bench import cases
from tidemill.bench.cases import CASES, Case
from tidemill.ingest.files.validation import Checker, Rules
from tidemill.ingest.files.verdict import Passed
from tidemill.schemas.jsonl.lines import Splitter


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_lines_have_the_size_of_their_case(case: Case) -> None:
    """And they are valid requests."""
    found = [cases.line(number, case.line_bytes, case.endpoint) for number in (0, case.lines - 1)]
    assert [len(line) for line in found] == [case.line_bytes] * 2
    assert orjson.loads(found[0])["body"]["model"] == cases.MODEL


@pytest.mark.parametrize("endpoint", [cases.CHAT, cases.EMBEDDINGS])
def test_ingest_accepts_the_lines(endpoint: str) -> None:
    """Otherwise the bench would measure an error path."""
    splitter = Splitter()
    rules = Rules(endpoint=endpoint, models={cases.MODEL: (endpoint,)}, lines_max=10**6, bytes_max=10**9)
    checker = Checker(rules)
    case = Case(name="x", lines=10, endpoint=endpoint)
    checker.check([*splitter.feed(b"".join(cases.lines(case))), *splitter.finish()])
    assert isinstance(checker.verdict(), Passed)


def test_the_large_file_is_just_below_the_limit() -> None:
    """Of 200 MiB."""
    large = next(case for case in CASES if case.name == "large-file")
    assert 209_000_000 < large.lines * large.line_bytes <= 209_715_200


def test_the_ideal_time_follows_changes_of_the_capacity() -> None:
    """Six seconds at 64, six at 32, then 64 again: 3,840 + 1,920 calls, and the rest."""
    case = Case(
        name="x", lines=6_400, latency_seconds=0.1, capacity=64, changes=((6.0, 32), (12.0, 64), (99.0, 1))
    )
    assert case.ideal_seconds == pytest.approx(13.0)
    assert Case(name="x", lines=640, latency_seconds=0.1, capacity=64).ideal_seconds == pytest.approx(1.0)


def test_a_comparison_shows_ratios() -> None:
    """For each number that the other run has."""
    text = cases.table({"a": {"seconds": 2.0}}, {"a": {"seconds": 4.0}})
    assert "2.000 (0.50 x)" in text
    assert " x)" not in cases.table({"a": {"seconds": 2.0}}, {})


def test_quantiles() -> None:
    """0 for no values."""
    assert cases.quantile([], 0.99) == 0
    assert cases.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
