"""Several processes of a stage may share a data folder: each has a folder of its own, and finds it again."""

import multiprocessing

from tidemill import folder


def taken(base, names):
    names.put(folder.take(base).name)


def test_each_process_has_its_own(tmp_path):
    """The first gets the plain name; what a process had is free once it has ended, however it ended."""
    base = tmp_path / "state" / "results"
    assert folder.take(base) == base
    spawn = multiprocessing.get_context("spawn")
    names = spawn.SimpleQueue()
    for _ in range(2):
        other = spawn.Process(target=taken, args=(base, names))
        other.start()
        other.join(30)
        assert names.get() == "results-1"
