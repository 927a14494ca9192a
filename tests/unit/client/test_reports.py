"""The commands `usage` and `keys`: what they ask for and how they print it."""

import pytest

from tidemill.client import keys, listing, reports
from tidemill.client.errors import UsageError
from tidemill.schemas.resources.access import ApiKey

DAY = 86_400


@pytest.mark.parametrize("text", ["=cmd()", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_a_cell_is_no_formula(text):
    """A spreadsheet shows it as it is."""
    assert listing.cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "0.5", "Qwen/Qwen3-8B", "a=b", "2026-11-23"])
def test_other_cells_are_as_they_are(text):
    """Nothing is put before them."""
    assert listing.cell(text) == text


def test_days_are_utc():
    """From the first day's midnight to the last one's, in Unix seconds."""
    found = reports.query(since="1970-01-02", until="1970-01-03", by="model,day", project="*")
    assert found == {"start_time": str(DAY), "end_time": str(2 * DAY), "group_by": "model,day", "project": "*"}
    assert reports.query(since=None, until=None, by=None, project=None) == {}


@pytest.mark.parametrize("wrong", [{"since": "yesterday"}, {"until": "2026-13-01"}, {"by": "model,secret"}])
def test_queries_that_are_none(wrong):
    """They are said to be before anything is asked."""
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
def test_what_has_become_of_a_key(fields, word):
    """In a word."""
    key = ApiKey(id="k", name="n", project="p", role="read", hint="h", created_at=1, **fields)
    assert keys.state(key, 100).split()[0] == word
