"""Several processes of a stage may share a data folder: each has a folder of its own, and finds it again."""

import subprocess
import sys

from tidemill.storage import locked_directory

TAKES = """
import sys
from pathlib import Path
from tidemill.storage.locked_directory import take
print(take(Path(sys.argv[1])).name)
"""
SECONDS_MAX = 60


def test_each_process_has_its_own(tmp_path):
    """The first gets the plain name; what a process had is free once it has ended, however it ended."""
    base = tmp_path / "state" / "results"
    assert locked_directory.take(base) == base
    for _ in range(2):
        other = subprocess.run(
            [sys.executable, "-c", TAKES, str(base)],
            capture_output=True,
            check=True,
            text=True,
            timeout=SECONDS_MAX,
        )
        assert other.stdout.strip() == "results-1"
