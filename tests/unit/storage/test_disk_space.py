"""A reserve stays free on the disks of the log and the store."""

import errno
import re
import shutil
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from tidemill.configuration.settings import Settings
from tidemill.storage.directory import DirectoryStore
from tidemill.storage.disk_space import LOG, STORE, DiskFull, DiskSpace

RESERVE = 1_000


def test_the_readme_asks_for_enough_space():
    """Twice the reserve stays free for new work to be taken; the rest is for the cache and the first batches."""
    [gib] = re.findall(r"([0-9]+) GiB of free disk", (Path(__file__).parents[3] / "README.md").read_text("utf-8"))
    assert int(gib) << 30 >= 2 * Settings.model_fields["disk_reserve_bytes"].default + (512 << 20)


async def looked(**free):
    """The free space of disks, each given as bytes or as the error to raise."""

    def asking(value):
        async def ask():
            if isinstance(value, Exception):
                raise value
            return value

        return ask

    space = DiskSpace(RESERVE, {disk: asking(value) for disk, value in free.items()})
    await space.look()
    return space


async def chunks(*pieces):
    for piece in pieces:
        yield piece


@pytest.mark.parametrize(
    ("free", "size", "fits"),
    [(2_000, 0, True), (1_999, 0, False), (2_500, 500, True), (2_500, 501, False), (0, 0, False)],
)
@pytest.mark.parametrize("fullest", [LOG, STORE])
async def test_new_work_leaves_twice_the_reserve(free, size, fits, fullest):
    """On each disk, with its known size."""
    space = await looked(**{LOG: 10_000, STORE: 10_000, fullest: free})
    if fits:
        space.accept(size)
        return
    with pytest.raises(DiskFull, match=f"disk of the {fullest} has {free} bytes free") as refused:
        space.accept(size)
    assert refused.value.errno == errno.ENOSPC


async def test_the_reserve_is_a_metric_of_each_disk():
    """The alert compares the free bytes with it."""
    await looked(log=5_000, store=10_000)
    for disk, free in ((LOG, 5_000), (STORE, 10_000)):
        assert REGISTRY.get_sample_value("tidemill_disk_free_bytes", {"disk": disk}) == free
        assert REGISTRY.get_sample_value("tidemill_disk_reserve_bytes", {"disk": disk}) == RESERVE


async def test_accepted_work_continues_down_to_the_reserve():
    """Between the reserve and its double only new work is refused."""
    space = await looked(log=RESERVE, store=10_000)
    space.check(LOG)
    with pytest.raises(DiskFull):
        space.accept(0)
    with pytest.raises(DiskFull):
        (await looked(log=RESERVE - 1)).check(LOG)


@pytest.mark.parametrize("answer", [None, OSError("away"), TimeoutError()])
async def test_unknown_free_bytes_block_nothing(answer):
    """Neither those of a bucket nor those of a broker that does not answer."""
    space = await looked(log=answer, store=10_000)
    space.accept(5_000)
    space.check(LOG)


async def test_a_folder_keeps_its_reserve(tmp_path):
    """It refuses an object that would go below it, in chunks of any size; reads and deletions continue."""
    plenty = DirectoryStore(tmp_path)
    await plenty.write("files/a", chunks(b"kept"))
    free = shutil.disk_usage(tmp_path).free
    assert abs(await plenty.free() - free) < free // 2
    tight = DirectoryStore(tmp_path, reserve_bytes=2 * free)
    for pieces in ((b"x",), (b"x" * (1 << 20), b"y")):
        with pytest.raises(DiskFull):
            await tight.write("files/b", chunks(*pieces))
    with pytest.raises(DiskFull):
        await tight.join("files/c", ["files/a"])
    assert [key async for key in tight.keys("files/")] == ["files/a"]
    assert list((tmp_path / ".partial").iterdir()) == []
    assert [piece async for piece in tight.read("files/a")] == [b"kept"]
    await tight.delete("files/a")
    assert [key async for key in tight.keys("files/")] == []


async def test_a_failed_look_blocks_nothing():
    """Any error forgets the last look, which found the disk full."""
    space = await looked(log=0)
    with pytest.raises(DiskFull):
        space.check(LOG)

    async def ask():
        raise LookupError("results")

    space._disks = {LOG: ask}
    await space.look()
    space.check(LOG)


async def test_a_disk_without_an_answer_is_logged_once(caplog):
    """Since it has no reserve; and again after it has answered meanwhile."""
    answers = [OSError("ClusterAuthorizationFailedError"), OSError("again"), 5_000, OSError("away")]

    async def ask():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    space = DiskSpace(RESERVE, {LOG: ask})
    for _ in range(4):
        await space.look()
    assert len(caplog.messages) == 2
    assert "so it has no reserve" in caplog.messages[0]
    assert "ClusterAuthorizationFailedError" in caplog.messages[0]
    assert "away" in caplog.messages[1]
