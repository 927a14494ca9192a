"""Queries and cells of `usage`, and the states of keys."""

import pytest

from tidemill.client import keys, listing, reports
from tidemill.client.errors import UsageError
from tidemill.schemas.resources.access import ApiKey

DAY = 86_400


@pytest.mark.parametrize("text", ["=cmd()", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_a_csv_cell_is_never_a_formula(text):
    """A quote makes a spreadsheet show it as text."""
    assert listing.cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "0.5", "Qwen/Qwen3-8B", "a=b", "2026-11-23"])
def test_other_csv_cells_are_unchanged(text):
    """They need no quote."""
    assert listing.cell(text) == text


def test_days_are_utc():
    """From midnight to midnight, in Unix seconds."""
    found = reports.query(since="1970-01-02", until="1970-01-03", by="model,day", project="*")
    assert found == {"start_time": str(DAY), "end_time": str(2 * DAY), "group_by": "model,day", "project": "*"}
    assert reports.query(since=None, until=None, by=None, project=None) == {}


@pytest.mark.parametrize("wrong", [{"since": "yesterday"}, {"until": "2026-13-01"}, {"by": "model,secret"}])
def test_an_invalid_query_is_refused(wrong):
    """Before a request is sent."""
    with pytest.raises(UsageError):
        reports.query(**{"since": None, "until": None, "by": None, "project": None} | wrong)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "active"),
        ({"expires_at": 99}, "expired"),
        ({"expires_at": 101}, "until"),
        ({"revoked_at": 5}, "revoked"),
    ],
)
def test_the_state_of_a_key(fields, word):
    """In one word."""
    key = ApiKey(id="k", name="n", project="p", role="read", hint="h", created_at=1, **fields)
    assert keys.state(key, 100).split()[0] == word
