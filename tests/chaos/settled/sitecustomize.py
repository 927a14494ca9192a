"""Processes delete by age from their start: else each waits for ten minutes."""

from tidemill.runtime import clocks

clocks.START_SECONDS = 0.0  # type: ignore[misc]
