"""Decides whether the log may soon drop records that a batch still needs; pure functions."""

import math

from tidemill.results.state.reducer import State
from tidemill.schemas.log import retention


def risk_at(state: State, retention_seconds: float) -> float | None:
    """When an active batch becomes at risk, Unix seconds; None if it never does, or already is."""
    batch = state.batch
    if batch is None or state.is_over or batch.tidemill.at_risk is not None:
        return None
    at = retention.risk_at(batch.created_at, retention_seconds)
    return at if math.isfinite(at) else None


def endangered(state: State, now: float, retention_seconds: float) -> State:
    """Show on a batch at risk when the log may begin to drop its records."""
    at = risk_at(state, retention_seconds)
    if at is None or now < at or state.batch is None:
        return state
    return state.with_extras(at_risk=int(state.batch.created_at + retention_seconds))
