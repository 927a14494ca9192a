"""The metrics of a store, and a store that is gone."""

import inspect
import re

import pytest

from tidemill import metrics
from tidemill.schemas.ports import NotFound, read_all
from tidemill.storage import metered
from tidemill.storage.address import open_store
from tidemill.storage.owner import KEY, StoreGone


def test_each_operation_has_its_series_from_the_start():
    """So that a rate over its first errors is right."""
    assert set(re.findall(r'_metered\("(\w+)"\)', inspect.getsource(metered))) == set(metrics.STORE_OPERATIONS)


async def test_an_object_is_missing_only_if_the_store_is_there(tmp_path):
    """Of a folder where a disk is not mounted no object is missing; what belongs to no log needs no owner."""
    store = open_store(tmp_path.as_uri(), is_owned=True)
    for missing in (store.size, lambda key: read_all(store.read(key)), lambda key: store.join("files/b", [key])):
        (tmp_path / KEY).unlink(missing_ok=True)
        with pytest.raises(StoreGone, match="is not mounted, or was emptied"):
            await missing("files/a")
        with pytest.raises(NotFound):
            await open_store(tmp_path.as_uri()).size("files/a")
        (tmp_path / KEY).touch()
        with pytest.raises(NotFound):
            await missing("files/a")
