"""Retries with back-off."""

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill import retrying
from tidemill.retrying import pause_seconds, retry


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_pauses_double_within_their_bounds(failures, chance):
    """Chance removes at most half of a pause; no number of failures exceeds the longest."""

    def pause(failures, chance=0.0, **bounds):
        with patch("random.random", return_value=chance):
            return pause_seconds(failures, **bounds)

    longest = pause(failures)
    assert longest / 2 <= pause(failures, chance) <= longest <= retrying.LONGEST_SECONDS
    assert longest == min(retrying.LONGEST_SECONDS, 2 * pause(failures - 1)) or failures == 0
    assert pause(0, first=3.0, longest=60.0) == 3.0


async def test_work_is_retried_until_it_succeeds(monkeypatch, caplog):
    """Each failure logs one line with the reason and without paths."""
    monkeypatch.setattr(retrying, "FIRST_SECONDS", 0.0)
    faults = [OSError(28, "No space left on device", "/secret/path"), TimeoutError(), RuntimeError("prompt")]

    async def work() -> str:
        if faults:
            raise faults.pop(0)
        return "done"

    assert await retry("the work", work, faults=(OSError, RuntimeError)) == "done"
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        f"the work failed ({why})" for why in ("No space left on device", "TimeoutError", "RuntimeError")
    ]


async def test_any_other_error_goes_to_the_caller():
    """It is not retried."""

    async def work() -> None:
        raise ValueError("unknown")

    with pytest.raises(ValueError, match="unknown"):
        await retry("the work", work)
