"""Whether the log may drop what a batch still needs. Pure."""

import math

from tidemill.faust import retention
from tidemill.results.state.reducer import State


def risk_at(state: State, kept_seconds: float) -> float | None:
    """When a batch that is not over gets at risk, Unix seconds; None if it does not, or already is."""
    batch = state.batch
    if batch is None or state.is_over or batch.tidemill.at_risk is not None:
        return None
    at = retention.risk_at(batch.created_at, kept_seconds)
    return at if math.isfinite(at) else None


def endangered(state: State, now: float, kept_seconds: float) -> State:
    """Show on a batch in danger from when on the log may have dropped what it needs."""
    at = risk_at(state, kept_seconds)
    if at is None or now < at or state.batch is None:
        return state
    gone_at = int(retention.gone_at(state.batch.created_at, kept_seconds))
    extras = state.batch.tidemill.model_copy(update={"at_risk": gone_at})
    return state.model_copy(update={"batch": state.batch.model_copy(update={"tidemill": extras})})
