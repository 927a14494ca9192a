"""Concurrency limits of a backend by the hour."""

from datetime import UTC, datetime

import pytest
from support.servers import configured

from tidemill.configuration.servers import Hours, Model
from tidemill.processors.backends.server_settings import schedule


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


NIGHT = {"from": "22:00", "to": "06:00", "days": (5, 6), "max_in_flight": 64}
DAY = {"from": "08:00", "to": "18:00", "max_in_flight": 0}


@pytest.mark.parametrize(
    ("when", "calls"),
    [
        ("2026-11-20T21:59", None),  # a Friday
        ("2026-11-20T22:00", 64),
        ("2026-11-21T05:59", 64),
        ("2026-11-21T06:00", None),
        ("2026-11-22T05:00", 64),
        ("2026-11-22T23:00", None),
        ("2026-11-23T05:00", None),
        ("2026-11-23T08:00", 0),
        ("2026-11-23T18:00", None),
    ],
)
def test_the_hours_of_a_week(when: str, calls: int | None) -> None:
    """A range over midnight belongs to the day on which it begins; its end is not part of it."""
    assert schedule([Hours(**NIGHT), Hours(**DAY)])(at(when)) == calls


def test_the_smallest_counts() -> None:
    """Where ranges overlap."""
    both = [Hours(**{**DAY, "max_in_flight": number}) for number in (9, 3)]
    assert schedule(both)(at("2026-11-23T12:00")) == 3


@pytest.mark.parametrize("text", ["8", "08:60", "25:00", "a:b", "-1:00"])
def test_a_time_has_its_form(text: str) -> None:
    """Others are refused with the settings."""
    with pytest.raises(ValueError, match="from"):
        Hours(**{**DAY, "from": text})


def test_a_backend_has_them_from_its_settings() -> None:
    """With its share and whether it is drained."""
    models = {"m": Model(backends=[{"url": "http://127.0.0.1:1/v1", "hours": [DAY], "share": 0.5, "drain": True}])}
    now = [at("2026-11-23T12:00")]
    (server,) = configured(models, clock=lambda: now[-1])
    server.set_part(1.0, 0.0)
    assert server.allowed(0.0) == 0
    now.append(at("2026-11-23T20:00"))
    assert server.allowed(0.0) == 4
    assert server.drain
