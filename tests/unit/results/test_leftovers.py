"""What batches leave in the store: parts go at once, large results when the log has nothing of them any more."""

from tidemill.directory import DirectoryStore
from tidemill.results.leftovers import Leftovers

KEPT_SECONDS = 1000.0
OURS, THEIRS, OPEN = (f"batch_{number:032x}" for number in range(3))


async def content():
    yield b"x"


async def keys(store):
    return [key async for key in store.keys("")]


async def test_large_results_stay_as_long_as_the_log(tmp_path):
    """Twice as long as it has to keep them, since it drops whole segments."""
    now = [10_000.0]
    store = DirectoryStore(tmp_path)
    names = [f"{prefix}/{batch}/1-a" for prefix in ("parts", "results-large") for batch in (OURS, THEIRS, OPEN)]
    for name in names:
        await store.write(name, content())
    leftovers = Leftovers(store, lambda: now[0], lambda: KEPT_SECONDS)
    await leftovers.clear({OURS: now[0], THEIRS: now[0] - KEPT_SECONDS})
    assert await keys(store) == [f"parts/{OPEN}/1-a", *names[3:]]
    now[0] += KEPT_SECONDS + 1
    await leftovers.clear({"batch_other": now[0]})
    assert await keys(store) == [f"parts/{OPEN}/1-a", names[3], names[5]]
    now[0] += KEPT_SECONDS
    await leftovers.clear({"batch_another": now[0]})
    assert await keys(store) == [f"parts/{OPEN}/1-a", names[5]]


async def test_while_the_log_has_not_told_they_stay(tmp_path):
    """How long it keeps its records is known a while after the start."""
    store = DirectoryStore(tmp_path)
    kept = [float("inf")]
    await store.write(f"results-large/{OURS}/1-a", content())
    leftovers = Leftovers(store, lambda: 10_000.0, lambda: kept[0])
    await leftovers.clear({OURS: 0.0})
    assert await keys(store)
    kept[0] = KEPT_SECONDS
    await leftovers.clear({THEIRS: 10_000.0})
    assert not await keys(store)
