"""What the commands `rerun` and `replay` ask for."""

import datetime as dt

import pytest

from tidemill.client.again import replayed, since, wished
from tidemill.client.place import InputFault

NOW = dt.datetime(2026, 11, 23, 9, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("only", "lines"),
    [
        ("unfinished", "unfinished"),
        ("failed", "failed"),
        ("expired", "expired"),
        ("cancelled", "cancelled"),
        ("all", "all"),
        ("code=429", {"codes": ["429"]}),
        ("code=429,batch_expired", {"codes": ["429", "batch_expired"]}),
    ],
)
def test_lines_by_name_or_by_code(only, lines):
    """And what is not said is left out."""
    assert wished(only=only, model=None, window=None) == {"lines": lines}
    assert wished(only=only, model="m", window="7d") == {"lines": lines, "model": "m", "completion_window": "7d"}


@pytest.mark.parametrize("only", ["", "some", "code=", "code=,", "codes"])
def test_other_words_are_refused(only):
    """With those that are known."""
    with pytest.raises(InputFault, match="unfinished, failed, expired, cancelled, all or code=CODE"):
        wished(only=only, model=None, window=None)


@pytest.mark.parametrize(
    ("text", "edge"),
    [
        ("-90m", "2026-11-23T07:30:00.000+00:00"),
        ("-1d", "2026-11-22T09:00:00.000+00:00"),
        ("42", "42"),
        ("2026-11-23T09:00:00Z", "2026-11-23T09:00:00Z"),
        ("-x", "-x"),
    ],
)
def test_so_long_ago_is_a_time(text, edge):
    """All else is for the service to read."""
    assert since(text, NOW) == edge


def test_the_body_of_a_replay():
    """Both edges are read."""
    source = {"model": "m", "from": "-1h", "to": "-0s"}
    assert replayed(source, model="n", window=None, now=NOW) == {
        "source": {"model": "m", "from": "2026-11-23T08:00:00.000+00:00", "to": "2026-11-23T09:00:00.000+00:00"},
        "model": "n",
    }
