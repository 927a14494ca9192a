"""The metrics of a store, and a store that its log does not own."""

import inspect
import re
import time

import pytest

from tidemill import metrics
from tidemill.schemas.ports import NotFound, once, read_all
from tidemill.storage import metered
from tidemill.storage.address import open_store
from tidemill.storage.owner import FOUND_SECONDS, KEY, StoreFault


def test_each_operation_has_its_series_from_the_start():
    """So that a rate over its first errors is right."""
    assert set(re.findall(r'_metered\("(\w+)"\)', inspect.getsource(metered))) == set(metrics.STORE_OPERATIONS)


OWN = b'{"identity":"cluster/files","files":3}'


async def identity():
    """That of a log."""
    return "cluster/files"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "is not mounted, or was emptied"),
        (OWN.replace(b"cluster", b"other"), "belongs to another log"),
        (b"x", "belongs to another log"),
        (b"", None),
        (OWN, None),
        (OWN[:-1] + b',"is_contested":true}', None),
    ],
)
@pytest.mark.parametrize("operation", ["size", "read", "join"])
async def test_an_object_is_missing_only_in_the_store_of_its_log(tmp_path, content, fault, operation):
    """Of a folder where a disk is not mounted no object is missing; what belongs to no log needs no owner."""
    store = open_store(tmp_path.as_uri(), identity=identity)
    missing = {
        "size": store.size,
        "read": lambda key: read_all(store.read(key)),
        "join": lambda key: store.join("files/b", [key]),
    }[operation]
    if content is not None:
        (tmp_path / KEY).write_bytes(content)
    for _ in range(2):
        with pytest.raises(NotFound) if fault is None else pytest.raises(StoreFault, match=fault):
            await missing("files/a")
    with pytest.raises(NotFound):
        await open_store(tmp_path.as_uri()).size("files/a")


@pytest.mark.parametrize(
    ("content", "deletes"),
    [
        (None, False),
        (OWN.replace(b"files", b"new", 1), False),
        (OWN[:-1] + b',"is_contested":true}', False),
        (b"", True),
        (OWN, True),
    ],
)
async def test_only_the_log_of_a_store_deletes(tmp_path, content, deletes, caplog):
    """And says once why it does not; whatever process asks."""
    store = open_store(tmp_path.as_uri(), identity=identity)
    if content is not None:
        (tmp_path / KEY).write_bytes(content)
    for key in ("files/a", "parts/b"):
        await store.write(key, once(b"x"))
        if deletes:
            await store.delete(key)
        else:
            with pytest.raises(StoreFault):
                await store.delete(key)
        assert (tmp_path / key).exists() is not deletes
    assert len(caplog.records) == (not deletes)


async def test_a_log_that_is_created_anew_is_known_at_once(tmp_path):
    """Once an operator has given it the store, no process needs a restart."""
    known = ["cluster/files"]

    async def changing():
        return known[0]

    (tmp_path / KEY).write_bytes(OWN)
    store = open_store(tmp_path.as_uri(), identity=changing)
    store._guard._monotonic = iter(range(0, 10_000, 100)).__next__
    with pytest.raises(NotFound):
        await store.size("files/a")
    known[0] = "cluster/new"
    (tmp_path / KEY).write_bytes(OWN.replace(b"cluster/files", b"cluster/new"))
    with pytest.raises(NotFound):
        await store.size("files/a")


async def test_missing_objects_of_one_moment_need_one_look(tmp_path):
    """Each look is a request to a bucket."""
    (tmp_path / KEY).write_bytes(OWN)
    store = open_store(tmp_path.as_uri(), identity=identity)
    with pytest.raises(NotFound):
        await store.size("files/a")
    (tmp_path / KEY).unlink()
    with pytest.raises(NotFound):
        await store.size("files/a")
    store._guard._monotonic = lambda: time.monotonic() + FOUND_SECONDS
    with pytest.raises(StoreFault):
        await store.size("files/a")
