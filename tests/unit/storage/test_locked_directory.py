"""Several processes of a stage share a data folder: each locks a folder of its own in it."""

import os
import subprocess
import sys

from support.waiting import WAIT_SECONDS_MAX

from tidemill.storage import locked_directory

LOCKS = """
import sys
from pathlib import Path
from tidemill.storage.locked_directory import lock_first_free
print(lock_first_free(Path(sys.argv[1]))[0].name)
"""


def test_each_process_locks_a_folder_of_its_own(tmp_path):
    """The first one has no number; the end of a process frees its folder."""
    base = tmp_path / "state" / "results"
    assert locked_directory.lock_first_free(base)[0] == base
    for _ in range(2):
        other = subprocess.run(
            [sys.executable, "-c", LOCKS, str(base)],
            capture_output=True,
            check=True,
            text=True,
            timeout=WAIT_SECONDS_MAX,
        )
        assert other.stdout.strip() == "results-1"


def test_a_number_in_a_stale_lock_is_no_holder(tmp_path):
    """The process that has it now may be any other; also that which asks, in a container."""
    descriptor = locked_directory.lock(tmp_path)
    assert locked_directory.holder(tmp_path) == os.getpid()
    os.close(descriptor)
    assert locked_directory.holder(tmp_path) is None
