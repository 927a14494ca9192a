"""The cases of the bench and their inputs."""

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
    assert orjson.loads(found[0])["body"]["model"] == cases.MODELS[0]


@pytest.mark.parametrize("endpoint", [cases.CHAT, cases.EMBEDDINGS])
def test_ingest_accepts_the_lines(endpoint: str) -> None:
    """Otherwise the bench would measure an error path."""
    splitter = Splitter()
    rules = Rules(endpoint=endpoint, models={cases.MODELS[0]: (endpoint,)}, lines_max=10**6, bytes_max=10**9)
    checker = Checker(rules)
    case = Case(name="x", lines=10, endpoint=endpoint)
    checker.check([*splitter.feed(b"".join(cases.lines(case))), *splitter.finish()])
    assert isinstance(checker.verdict(), Passed)


def test_the_large_file_is_just_below_the_limit() -> None:
    """Of 200 MiB."""
    large = next(case for case in CASES if case.name == "large-file")
    assert 209_000_000 < large.lines * large.line_bytes <= 209_715_200


def test_the_bare_client_has_no_more_calls_than_lines_in_progress() -> None:
    """16 clients with ten lines each cannot keep 256 calls in flight, so the floor must not either."""
    assert next(case for case in CASES if case.name == "small-batches").in_flight_max == 160
    assert next(case for case in CASES if case.name == "fifty-thousand").in_flight_max == cases.IN_FLIGHT_MAX
