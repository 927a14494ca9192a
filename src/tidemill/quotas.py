"""Quotas: the limits of a project on what it runs and stores.

The api and ingest each count what a project has, from different sources; both check it here.
"""

from enum import StrEnum
from typing import Final

from tidemill.configuration.projects import Limits
from tidemill.wording import counted


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
    Quota.BATCHES_IN_PROGRESS: ("has {} in progress and may have {:,}", "batch"),
    Quota.BATCHES: ("has {} and may have {:,}", "batch"),
    Quota.LINES: ("has {} enqueued and may have {:,}", "line"),
    Quota.FILES: ("has {} and may have {:,}", "file"),
    Quota.BYTES: ("stores {} and may store {:,}", "byte"),
    Quota.UPLOADS: ("has {} in parts and may have {:,}", "upload"),
    Quota.KEYS: ("has {} and may have {:,}", "key"),
    Quota.WEBHOOKS: ("has {} and may have {:,}", "webhook endpoint"),
}


class QuotaExceeded(Exception):
    """A project has no room for more; the text continues "the project"."""

    def __init__(self, quota: Quota, held: int, most: int) -> None:
        text, noun = _TEXTS[quota]
        super().__init__(text.format(counted(held, noun), most))
        self.quota = quota


def check(quota: Quota, held: int, more: int, limits: Limits) -> None:
    """Check that a project has room for more.

    Raises:
        QuotaExceeded: With `more` it would have more than the limit.
    """
    if held + more > (most := getattr(limits, quota)):
        raise QuotaExceeded(quota, held, most)
