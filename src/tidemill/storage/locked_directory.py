"""A folder that one process holds: several processes of one machine keep their state side by side."""

import fcntl
import os
from pathlib import Path
from typing import Final

PROCESSES_MAX: Final = 256
"""Processes of one stage that may share one data folder."""
LOCK: Final = "lock"


def take(base: Path) -> Path:
    """Hold the first of `base`, `base-1`, `base-2` … that no other process holds, for as long as this one lives.

    A process that is started again after its end finds the folder that it had, or one that another has left.

    Raises:
        OSError: It cannot be made, or `PROCESSES_MAX` processes are there already.
    """
    for number in range(PROCESSES_MAX):
        folder = base.with_name(f"{base.name}-{number}") if number else base
        folder.mkdir(parents=True, exist_ok=True)
        # The descriptor is kept open on purpose: the kernel lets go of the lock however the process ends.
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return folder
    raise OSError(f"{base}: all of its {PROCESSES_MAX} places are in use")
