"""Pages of a list."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.api.requests import paging, reading
from tidemill.api.requests.bodies import Seal
from tidemill.api.requests.filters import BatchesQuery
from tidemill.api.requests.paging import Page, Row
from tidemill.configuration.settings import Settings
from tidemill.schemas.bounds import NUMBER_MAX
from tidemill.schemas.resources.error import ApiError


def parsed(query):
    return reading.query(BatchesQuery, query.items()).page


def test_defaults_of_a_page():
    """Without a query, and with empty values."""
    assert parsed({}) == parsed({"limit": "", "after": "", "order": ""}) == Page(limit=20)


def test_fields_of_a_page():
    """All three."""
    query = {"limit": "5", "after": "x", "order": "asc"}
    assert parsed(query) == Page(limit=5, after="x", newest_first=False)


@pytest.mark.parametrize(
    ("query", "param", "code", "message"),
    [
        (
            {"limit": "101"}, "limit", "integer_above_max_value",
            "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.",
        ),
        (
            {"limit": "-1"}, "limit", "integer_below_min_value",
            "Invalid 'limit': integer below minimum value. Expected a value >= 1, but got -1 instead.",
        ),
        (
            {"limit": "٣"}, "limit", "invalid_type",
            "Invalid type for 'limit': expected an integer, but got a string instead.",
        ),
        ({"order": "x"}, "order", "invalid_value", "Invalid value: 'x'. Supported values are: 'asc' and 'desc'."),
    ],
)  # fmt: skip
def test_faults_of_a_page(query, param, code, message):
    """Each names its parameter."""
    with pytest.raises(ApiError) as caught:
        parsed(query)
    assert (caught.value.status, caught.value.body.param, caught.value.body.code) == (400, param, code)
    assert caught.value.body.message == message


@pytest.mark.parametrize("digits", [*range(1, 41), 5_000])
@pytest.mark.parametrize(("sign", "side"), [("", "above_max"), ("+", "above_max"), ("-", "below_min")])
def test_an_integer_may_have_any_number_of_digits(digits, sign, side):
    """Of a query and of a body: one beyond its bound is out of range, and no other type."""
    for value in ("9" * digits, "0" + "9" * digits):
        if sign != "-" and digits < 3:
            assert parsed({"limit": sign + value}).limit == int(value)
            continue
        with pytest.raises(ApiError) as caught:
            parsed({"limit": sign + value})
        assert (caught.value.body.param, caught.value.body.code) == ("limit", f"integer_{side}_value")
    assert parsed({"limit": "0" * digits + "7"}).limit == 7
    in_body = f'{{"sequence": {sign.replace("+", "")}{"9" * min(digits, 300)}}}'.encode()
    if sign != "-" and digits <= len(str(NUMBER_MAX)) - 1:
        assert reading.body(Seal, in_body, Settings()).sequence == int("9" * digits)
        return
    with pytest.raises(ApiError) as caught:
        reading.body(Seal, in_body, Settings())
    assert (caught.value.body.param, caught.value.body.code) == ("sequence", f"integer_{side}_value")


@given(st.integers(1, 5), st.integers(0, 6))
def test_a_page_says_whether_there_is_more(limit, found):
    """It has at most `limit` objects, and the ids of its first and last one."""
    rows = [Row(id=f"i{n}", body=json.dumps({"id": f"i{n}"}).encode()) for n in range(min(found, limit + 1))]
    page = json.loads(paging.write(Page(limit=limit), rows))
    assert [entry["id"] for entry in page["data"]] == [row.id for row in rows[:limit]]
    assert page["has_more"] == (found > limit)
    assert page["first_id"] == (page["data"][0]["id"] if page["data"] else None)
    assert page["last_id"] == (page["data"][-1]["id"] if page["data"] else None)
