"""The quotas that the api and ingest check."""

import pytest

from tidemill import quotas
from tidemill.configuration.projects import Limits
from tidemill.quotas import Quota, QuotaExceeded


def test_each_limit_of_a_total_is_a_quota():
    """A limit in the settings alone would not be checked; others bound a rate, a batch or a turn."""
    others = ("requests_", "models_per_batch_max", "batches_at_work_max")
    assert {name for name in Limits.model_fields if not name.startswith(others)} == set(Quota)


@pytest.mark.parametrize("quota", Quota)
def test_a_project_may_have_as_much_as_its_limit(quota):
    """And no more; the text has both numbers."""
    limits = Limits(**{quota: 5})
    quotas.check(quota, 3, 2, limits)
    with pytest.raises(QuotaExceeded, match=r"\b3 .* 5\b"):
        quotas.check(quota, 3, 3, limits)
