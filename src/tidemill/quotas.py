"""Quotas: the limits of a project on what it runs and stores.

The api and ingest each count what a project has, from different sources; both check it here.
"""

from enum import StrEnum
from typing import Final

from tidemill.configuration.projects import Limits


class Quota(StrEnum):
    """A limit of a project, by its name in the settings."""

    BATCHES_IN_PROGRESS = "batches_in_progress_max"
    BATCHES = "batches_max"
    LINES = "lines_enqueued_max"
    FILES = "files_max"
    BYTES = "bytes_stored_max"
    UPLOADS = "uploads_pending_max"
    KEYS = "keys_max"
    WEBHOOKS = "webhook_endpoints_max"


_TEXTS: Final = {
    Quota.BATCHES_IN_PROGRESS: "has {} batches in progress and may have {}",
    Quota.BATCHES: "has {} batches and may have {}",
    Quota.LINES: "has {} lines enqueued and may have {}",
    Quota.FILES: "has {} files and may have {}",
    Quota.BYTES: "stores {} bytes and may store {}",
    Quota.UPLOADS: "has {} uploads in parts and may have {}",
    Quota.KEYS: "has {} keys and may have {}",
    Quota.WEBHOOKS: "has {} webhook endpoints and may have {}",
}


class QuotaExceeded(Exception):
    """A project has no room for more; the text continues "the project"."""

    def __init__(self, quota: Quota, held: int, most: int) -> None:
        super().__init__(_TEXTS[quota].format(held, most))
        self.quota = quota


def check(quota: Quota, held: int, more: int, limits: Limits) -> None:
    """Check that a project has room for more.

    Raises:
        QuotaExceeded: With `more` it would have more than the limit.
    """
    if held + more > (most := getattr(limits, quota)):
        raise QuotaExceeded(quota, held, most)
