"""The metrics of a store."""

import inspect
import re

from tidemill import metrics
from tidemill.storage import metered


def test_each_operation_has_its_series_from_the_start():
    """So that a rate over its first errors is right."""
    assert set(re.findall(r'_metered\("(\w+)"\)', inspect.getsource(metered))) == set(metrics.STORE_OPERATIONS)
