"""Every metric of Tidemill, defined once; docs/metrics.md has the same table.

Names begin with `tidemill_`, units are base units, and no label ever holds an id, a project or a user's text: a
process has some hundred series, whatever runs on it. The library's own registry of the process is used.
"""

from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, Gauge, generate_latest

OUTCOMES: Final = ("completed", "failed")

LINES: Final = Counter(
    "tidemill_lines", "Lines of finished batches, by the file they are in.", ("outcome",)
)  # fmt: skip
DEAD_LETTERS: Final = Counter(
    "tidemill_dlq_messages", "Records that a stage could not read, now in `tidemill.dead`.", ("stage",)
)  # fmt: skip
MISMATCHES: Final = Counter(
    "tidemill_reconcile_mismatch", "Batches whose receipt has a line missing or double; more than 0 is an alarm."
)  # fmt: skip
LAG: Final = Gauge(
    "tidemill_lag_seconds", "Age of the oldest record that a consumer has not committed.", ("consumer",)
)  # fmt: skip

for _outcome in OUTCOMES:
    LINES.labels(_outcome)


def text() -> tuple[bytes, str]:
    """All metrics in Prometheus' text format, and its content type."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
