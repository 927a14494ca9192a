"""Locks a folder against other processes of the machine; the kernel releases the lock however the process ends."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

PROCESSES_MAX: Final = 256
"""Processes of one stage that may share a data folder."""
LOCK: Final = "lock"
"""The locked file in the folder; it contains the id of the process."""
_PID_BYTES_MAX: Final = 32


class FolderLocked(OSError):
    """Another process has locked the folder.

    Attributes:
        holder: Its process id; "unknown" if the disk was full.
    """

    def __init__(self, folder: Path, holder: str) -> None:
        super().__init__(f"{folder} is locked by process {holder}")
        self.holder = holder


def lock(folder: Path) -> int:
    """Lock an existing folder; returns the file descriptor that holds the lock until it is closed.

    Raises:
        FolderLocked: Another process has locked it.
        OSError: The lock file cannot be opened.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, _PID_BYTES_MAX, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise FolderLocked(folder, holder) from error
    # On a full disk the folder is locked without the process id.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    return descriptor


def holder(folder: Path) -> int | None:
    """The process that has locked a folder; None if there is none."""
    with suppress(OSError, ValueError, OverflowError), (folder / LOCK).open("rb") as file:
        process = int(file.read(_PID_BYTES_MAX))
        # Only if it lives: the attempt disturbs a process that is about to lock the folder.
        os.kill(process, 0)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return process
    return None


def lock_first_free(base: Path) -> tuple[Path, int]:
    """Lock the first of `base`, `base-1`, `base-2` … that no other process holds.

    So several processes keep their state side by side, and a restarted process finds the state that it, or another
    process, has left.

    Returns:
        The folder, and the file descriptor that holds the lock until it is closed.

    Raises:
        OSError: A folder cannot be created, or `PROCESSES_MAX` processes hold theirs.
    """
    for number in range(PROCESSES_MAX):
        folder = base.with_name(f"{base.name}-{number}") if number else base
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FolderLocked):
            return folder, lock(folder)
    raise OSError(f"{base}: other processes hold all {PROCESSES_MAX} folders")
