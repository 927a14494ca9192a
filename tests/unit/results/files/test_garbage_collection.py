"""The removal of the objects of batches."""

import os
from contextlib import contextmanager

from support.simulated import surely

from tidemill.results.files.garbage_collection import GarbageCollection
from tidemill.schemas import ids
from tidemill.schemas.log.part import file_key, index_key
from tidemill.storage.directory import DirectoryStore

OVER, OPEN = (f"batch_{number:032x}" for number in range(2))


async def content():
    yield b"x"


async def filled(folder):
    """A store with a part and a large result of each batch."""
    store = DirectoryStore(folder)
    for batch in (OVER, OPEN):
        for prefix in ("parts", "results-large"):
            await store.write(f"{prefix}/{batch}/1-a", content())
    return store


async def keys(store):
    return [key async for key in store.keys("")]


async def test_parts_go_with_their_batch(tmp_path):
    """Large results stay, since the log refers to them."""
    store = await filled(tmp_path)
    await GarbageCollection(store, surely).clear(OVER)
    assert await keys(store) == [f"parts/{OPEN}/1-a", f"results-large/{OVER}/1-a", f"results-large/{OPEN}/1-a"]


async def test_a_sweep_asks_which_batches_are_over(tmp_path):
    """Once for each batch with objects."""
    store, asked = await filled(tmp_path), []
    await GarbageCollection(store, surely).sweep(lambda batch_id: asked.append(batch_id) or batch_id == OVER)
    assert asked == [OVER, OPEN]
    assert await keys(store) == [f"parts/{OPEN}/1-a", f"results-large/{OVER}/1-a", f"results-large/{OPEN}/1-a"]


async def test_large_results_of_named_batches_are_removed(tmp_path):
    """Other batches keep theirs."""
    store = await filled(tmp_path)
    assert await GarbageCollection(store, surely).forget([OVER]) == 1
    assert await keys(store) == [f"parts/{OVER}/1-a", f"parts/{OPEN}/1-a", f"results-large/{OPEN}/1-a"]


async def test_a_deletion_reads_few_of_the_other_files(tmp_path, monkeypatch):
    """A folder of 300,000 files takes 0.4 s to read."""
    store, seen = DirectoryStore(tmp_path), []
    batches = [f"batch_{number:032x}" for number in range(1_000)]
    for batch in batches:
        for key in (file := file_key(ids.derived_file_id(batch, "output"), "w"), index_key(file)):
            (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / key).touch()

    @contextmanager
    def scanned(folder, scandir=os.scandir):
        with scandir(folder) as found:
            yield (seen.append(entry) or entry for entry in found)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", scanned)
        await GarbageCollection(store, surely).erase(batches[7], ("output", "errors"))
    assert len(await keys(store)) == 2 * len(batches) - 2
    assert 2 <= len(seen) <= 60
