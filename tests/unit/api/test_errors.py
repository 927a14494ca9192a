"""The bodies of errors."""

import errno
import json
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tidemill.api import error_bodies, errors

ROOT = Path(__file__).parents[3]


def test_an_error_has_all_four_keys():
    """Clients read each of them."""
    status, body = error_bodies.render(errors.no_batch("x"), request_id="req_1", anthropic=False)
    assert status == 404
    assert json.loads(body) == {
        "error": {
            "message": "No batch found with id 'x'.",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
    }


def test_a_fault_of_a_field_has_a_code():
    """The contract has a 400 without a code only where it has no param; every 400 is made here."""
    assert errors.invalid("m", param="p").body.code == "invalid_value"
    assert errors.invalid("m", param="p", code="c").body.code == "c"
    assert errors.invalid("m").body.code is None
    made = [path for path in (ROOT / "api").rglob("*.py") if re.search(r"ApiError\(\s*400\b", path.read_text())]
    assert made == [ROOT / "api" / "errors.py"]


def test_a_full_store_differs_from_an_unavailable_one():
    """Only deletions help, so clients wait longer."""
    full = errors.from_store(OSError(errno.ENOSPC, "no space"))
    away = errors.from_store(OSError("no answer"))
    assert (full.status, full.body.code, away.status, away.body.code) == (507, "storage_full", 503, None)
    assert int(full.headers["retry-after"]) > int(away.headers["retry-after"])


def test_the_wording_of_openai():
    """Clients match on it."""
    wrong = errors.wrong_value("endpoint", "/v1/invalid/endpoint", ("/v1/a", "/v1/b", "/v1/c"))
    assert wrong.body.message == (
        "Invalid value: '/v1/invalid/endpoint'. Supported values are: '/v1/a', '/v1/b', and '/v1/c'."
    )
    array = errors.wrong_type("metadata.tags", "a string", [])
    assert array.body.message == "Invalid type for 'metadata.tags': expected a string, but got an array instead."
    assert errors.missing("input_file_id").body.message == "Missing required parameter: 'input_file_id'."
    assert errors.no_file("file-abc123").body.message == "No such File object: file-abc123"


def test_names_of_types():
    """A boolean is no integer."""
    named = [errors.wrong_type("x", "a", value).body.message for value in (True, 1, 1.5, "", {}, [], None)]
    ends = ["a boolean", "an integer", "a decimal", "a string", "an object", "an array", "null"]
    assert [message.removesuffix(" instead.").split("got ")[1] for message in named] == ends


@given(st.text(max_size=60))
def test_an_error_never_repeats_a_whole_key(key):
    """Nor most of it."""
    message = errors.wrong_key(key).body.message
    shown = message.removeprefix("Incorrect API key provided: ").split(". Ask")[0]
    assert len(shown.replace("***", "", 1)) <= 7
    assert len(key) <= 16 or key not in message


def test_an_error_repeats_a_bounded_part_of_a_request():
    """For any length of the field."""
    assert len(errors.no_file("x" * 100_000).body.message) < 300
