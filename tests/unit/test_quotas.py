"""The quotas that the api and ingest check."""

import pytest

from tidemill import quotas
from tidemill.configuration.projects import Limits
from tidemill.quotas import Quota, QuotaExceeded


def test_each_limit_of_a_total_is_a_quota():
    """A limit in the settings alone would not be checked; others bound a rate, a batch or a turn."""
    others = ("requests_", "models_per_batch_max", "batches_at_work_max")
    assert {name for name in Limits.model_fields if not name.startswith(others)} == set(Quota)


@pytest.mark.parametrize(
    ("quota", "held", "said"),
    [
        (Quota.BATCHES_IN_PROGRESS, 1, "has 1 batch in progress and may have 1"),
        (Quota.BATCHES_IN_PROGRESS, 2, "has 2 batches in progress and may have 2"),
        (Quota.BATCHES, 1, "has 1 batch and may have 1"),
        (Quota.LINES, 50_000, "has 50,000 lines enqueued and may have 50,000"),
        (Quota.FILES, 1, "has 1 file and may have 1"),
        (Quota.BYTES, 1, "stores 1 byte and may store 1"),
        (Quota.UPLOADS, 1, "has 1 upload in parts and may have 1"),
        (Quota.KEYS, 1, "has 1 key and may have 1"),
        (Quota.WEBHOOKS, 1, "has 1 webhook endpoint and may have 1"),
    ],
)
def test_a_used_quota_is_told_in_words(quota, held, said):
    """One thing in the singular."""
    with pytest.raises(QuotaExceeded, match=f"^{said}$"):
        quotas.check(quota, held, 1, Limits(**{quota: held}))


@pytest.mark.parametrize("quota", Quota)
def test_a_project_may_have_as_much_as_its_limit(quota):
    """And no more; the text has both numbers."""
    limits = Limits(**{quota: 5})
    quotas.check(quota, 3, 2, limits)
    with pytest.raises(QuotaExceeded, match=r"\b3 .* 5\b"):
        quotas.check(quota, 3, 3, limits)
