"""The retention guard warns in time, and the batch shows the risk."""

import math

import pytest

from tidemill.configuration import settings
from tidemill.configuration.settings import Settings
from tidemill.faust.retention import WARN_SECONDS, RetentionGuard, ages
from tidemill.kafka.admin import Retention
from tidemill.results.state import retention_risk
from tidemill.results.state.reducer import State
from tidemill.schemas.log import retention
from tidemill.schemas.resources.batch import Batch, Status

DAY = 86_400.0
NOW = 1_790_000_000


@pytest.mark.parametrize(("kept", "at"), [(7 * DAY, 6 * DAY), (3600, 2700), (math.inf, math.inf)])
def test_the_margin_before_removal(kept, at):
    """A day, or a quarter of a short retention; a log that keeps all records has no risk."""
    assert retention.risk_at(0.0, kept) == at
    assert not retention.is_at_risk(at - 1 if math.isfinite(at) else 1e12, kept)
    assert retention.is_at_risk(at, kept) or math.isinf(at)


class Kept:
    """A broker that says how long it keeps, or does not answer."""

    def __init__(self, **retention):
        self.retention = Retention(**retention)

    async def __call__(self):
        if self.retention is None:
            raise OSError
        return self.retention


async def test_a_slow_consumer_is_logged(caplog):
    """By its name, once an hour by no wall clock; the last known retention stays if the broker is silent."""
    wall, now, kept = NOW, 5.0, Kept(shortest=7 * DAY)
    guard = RetentionGuard(
        kept,
        {"slow": lambda: NOW - 6.5 * DAY, "idle": lambda: None, "quick": lambda: NOW - 5},
        lambda: wall,
        monotonic=lambda: now,
    )
    assert ages(guard._consumers, wall) == {"slow": 6.5 * DAY, "idle": 0.0, "quick": 5.0}
    assert await guard.look() == ["slow"]
    kept.retention = None
    wall += 2 * WARN_SECONDS
    assert await guard.look() == ["slow"]
    assert [record.levelname for record in caplog.records if "slow" in record.getMessage()] == ["WARNING"]
    wall -= 3 * WARN_SECONDS
    now += WARN_SECONDS
    await guard.look()
    assert len([record for record in caplog.records if "slow" in record.getMessage()]) == 2


async def test_topics_cut_by_size_are_logged(caplog):
    """Once an hour, by name."""
    guard = RetentionGuard(Kept(by_size=("tidemill.outcomes",)), {}, lambda: NOW)
    for _ in range(2):
        assert await guard.look() == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "tidemill.outcomes by size" in caplog.text


def state(status=Status.IN_PROGRESS):
    batch = Batch(
        id="batch_1", endpoint="/v1/embeddings", input_file_id="file-1", completion_window="7d", status=status,
        created_at=NOW, expires_at=NOW + int(7 * DAY),
    )  # fmt: skip
    return State(id="batch_1", partition=0, batch=batch)


def test_a_batch_at_risk_shows_it():
    """Once, with the time from which on records may be removed."""
    before = state()
    at = retention_risk.risk_at(before, 2 * DAY)
    assert at == NOW + 1.5 * DAY
    assert retention_risk.endangered(before, at - 1, 2 * DAY) is before
    after = retention_risk.endangered(before, at, 2 * DAY)
    assert after.batch.tidemill.at_risk == NOW + 2 * DAY
    assert retention_risk.endangered(after, at + 5, 2 * DAY) is after
    assert retention_risk.risk_at(after, 2 * DAY) is None


def test_batches_without_a_risk():
    """Finished ones, those of a log that keeps all records, and those not created yet."""
    assert retention_risk.risk_at(state(Status.COMPLETED), DAY) is None
    assert retention_risk.risk_at(state(), math.inf) is None
    assert retention_risk.risk_at(State(id="batch_1", partition=0), DAY) is None


@pytest.mark.parametrize("window", ["8d", "200h", "soon"])
def test_an_invalid_window_is_refused(window, monkeypatch):
    """By its name, when the settings are read."""
    monkeypatch.setenv("TIDEMILL_WINDOWS", f'{{"24h": 0.5, "{window}": 0.5}}')
    with pytest.raises(settings.SettingsError, match=rf"windows: .*{window}"):
        settings.load()


def test_a_window_as_long_as_the_retention():
    """It is valid."""
    assert Settings(windows={"7d": 0}).windows == {"7d": 0}
