"""Pages of a list."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.api.requests import paging, reading
from tidemill.api.requests.filters import BatchesQuery
from tidemill.api.requests.paging import Page, Row
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


@given(st.integers(1, 5), st.integers(0, 6))
def test_a_page_says_whether_there_is_more(limit, found):
    """It has at most `limit` objects, and the ids of its first and last one."""
    rows = [Row(id=f"i{n}", body=json.dumps({"id": f"i{n}"}).encode()) for n in range(min(found, limit + 1))]
    page = json.loads(paging.write(Page(limit=limit), rows))
    assert [entry["id"] for entry in page["data"]] == [row.id for row in rows[:limit]]
    assert page["has_more"] == (found > limit)
    assert page["first_id"] == (page["data"][0]["id"] if page["data"] else None)
    assert page["last_id"] == (page["data"][-1]["id"] if page["data"] else None)
