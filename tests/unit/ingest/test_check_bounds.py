"""Bounds of the check: long, deep and hostile lines, arbitrary bytes, and the size of a verdict."""

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.checking import CHAT, EMBEDDINGS, fault, line, request_body, rules, verdict

from tidemill.ingest.files import validation
from tidemill.ingest.files import verdict as verdict_of_file
from tidemill.ingest.files.validation import Checker
from tidemill.ingest.files.verdict import Failed, Passed
from tidemill.schemas.bounds import ERRORS_BYTES_MAX
from tidemill.schemas.jsonl.lines import Line, Splitter
from tidemill.schemas.resources.batch import BatchError, BatchErrors, error_bytes
from tidemill.wording import counted


def test_a_line_above_the_bound_is_a_fault():
    """The checker goes on with the next line."""
    checker, splitter = Checker(rules()), Splitter(200)
    for found in splitter.feed(line("a", body=request_body(x="x" * 200)) + b"\n" + line("b") + b"\nx\n"):
        checker.check([found])
    found = checker.verdict()
    assert isinstance(found, Failed)
    assert [(error.code, error.line) for error in found.errors] == [("line_too_long", 1), ("invalid_json_line", 3)]


@pytest.mark.parametrize(("levels", "fine"), [(126, True), (127, False), (1_000, False), (100_000, False)])
@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_is_bounded(levels, fine, pair):
    """The line and its body are two levels; a deeper line is a fault, never a crash."""
    opening, closing = pair
    deep = line(body=request_body(x="X")).replace(b'"X"', opening * levels + b"1" + closing * levels)
    if fine:
        assert verdict(deep) == Passed(total=1, models=("m",))
    else:
        error = fault(deep)
        assert (error.code, error.line) == ("invalid_json_line", 1)
        assert "128 levels" in error.message


@pytest.mark.parametrize(
    "hostile", [b'"' + b'\\"' * 500_000, b'{"a":"' + b"[" * 1_000_000, b"]" * 1_000_000, b"[{" * 500_000]
)
def test_a_hostile_line_costs_no_more_than_its_length(hostile):
    """Endless escapes and unbalanced brackets do not slow the check down."""
    assert fault(hostile).code == "invalid_json_line"


@settings(deadline=None)
@given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_give_a_verdict(data):
    """An arbitrary line is at worst a fault."""
    found = verdict(data)
    assert isinstance(found, Failed)
    for error in found.errors:
        error.model_dump_json()


@settings(deadline=None)
@given(
    value=st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3), st.lists),
    field=st.sampled_from(["custom_id", "method", "url", "body", "model", "messages", "stream"]),
)
def test_any_value_gives_a_verdict(value, field):
    """An arbitrary value of a field is at worst a fault."""
    body = request_body(**{field: value})
    request = (
        line(body=body)
        if field in body and field not in {"custom_id", "method", "url", "body"}
        else line(**{field: value})
    )
    assert isinstance(verdict(request), Passed | Failed)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-2, 2) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=1), inner, max_size=2),
    max_leaves=4,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    given_fields=st.dictionaries(st.sampled_from(["custom_id", "method", "url", "body", "x"]), VALUES, max_size=2),
    given_body=st.dictionaries(
        st.sampled_from(["model", "messages", "input", "stream", "prompt", "x"]), VALUES, max_size=2
    ),
    endpoint=st.sampled_from([CHAT, EMBEDDINGS, "/v1/completions"]),
    cut=st.none() | st.integers(0, 80),
)
def test_a_long_line_is_judged_as_a_short_one(monkeypatch, given_fields, given_body, endpoint, cut):
    """The check without decoded objects finds the same faults."""
    body = {"model": "m", "messages": [1], "input": "x", "prompt": "x"} | given_body
    text = orjson.dumps({"custom_id": "a", "method": "POST", "url": endpoint, "body": body} | given_fields)[:cut]

    def judged(bytes_max):
        monkeypatch.setattr(validation, "LONG_LINE_BYTES", bytes_max)
        checker = Checker(rules(endpoint))
        checker.check([Line(1, 0, text)])
        return checker.verdict(), checker._inputs

    assert judged(0) == judged(1 << 20)


@pytest.mark.parametrize("name", ["\x01" * 64, "\x01" * 100, "ü" * 64])
@pytest.mark.parametrize("faulty", [300, 1000, 1500])
def test_faults_that_quote_much_fit_into_a_record(name, faulty):
    """As many are listed as fit, with characters of the most bytes; the rest are counted."""
    found = verdict(*[line(str(number), body=request_body(model=name)) for number in range(faulty)])
    assert isinstance(found, Failed)
    assert BatchErrors(data=found.errors).data == found.errors
    *listed, last = found.errors
    if len(found.errors) == faulty:
        assert last.code == "model_not_found"
    else:
        assert last.message == f"Not listed: {counted(faulty - len(listed), 'more error')}."
        assert len(listed) > 250


@pytest.mark.parametrize("value", [b'"\xff"', b'"\xed\xa0\x80"', b'"\\ud800"', b"01", b"[1,]", b"nul"])
def test_a_long_line_is_parsed_as_strictly(monkeypatch, value):
    """Skipped text has to be JSON and UTF-8 too."""
    monkeypatch.setattr(validation, "LONG_LINE_BYTES", 0)
    text = line(body=request_body(x="X")).replace(b'"X"', value)
    assert fault(text).code == "invalid_json_line"


def test_one_fault_is_reported_for_every_faulty_line():
    """The first fault of a line, for all faulty lines of a file."""
    found = verdict(b"x", line(1), line("a", method="GET", url="/x"), line("b"), line("b"))
    assert isinstance(found, Failed)
    assert [(error.line, error.code) for error in found.errors] == [
        (1, "invalid_json_line"), (2, "invalid_type"), (3, "invalid_method"), (5, "duplicate_custom_id"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("faulty", "listed", "unlisted"), [(999, 999, 0), (1000, 1000, 0), (1001, 999, 2), (5000, 999, 4001)]
)
def test_faults_are_listed_up_to_a_bound(faulty, listed, unlisted):
    """The last entry names the number of those left out."""
    found = verdict(*[b"x"] * faulty)
    assert isinstance(found, Failed)
    assert len(found.errors) <= verdict_of_file.FAULTS_MAX
    assert sum(error.code == "invalid_json_line" for error in found.errors) == listed
    if unlisted:
        assert found.errors[-1] == BatchError(
            code="too_many_errors", message=f"Not listed: {counted(unlisted, 'more error')}."
        )


def test_the_largest_verdict_fits_into_a_record():
    """A thousand faults with long quotes stay below the bound of a record."""
    lines = [line("\x01" * 511 + str(number)) for number in range(1, 10) for _ in range(200)]
    found = verdict(*lines)
    assert isinstance(found, Failed)
    assert 400 < len(found.errors) <= 1000
    assert sum(map(error_bytes, found.errors)) <= ERRORS_BYTES_MAX
