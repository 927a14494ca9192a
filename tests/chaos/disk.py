"""A disk of its own for the data folder and one for its store, which can be full: file systems in memory.

To mount one takes a privilege (root on a plain machine). A disk is full when its size is set to what it holds, so
it takes no more memory than what was written to it.
"""

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

DISK_BYTES = 8 << 30
"""Far more than the reserve, of which uploads need twice as much to be free (`disk_reserve_bytes`)."""
COMMAND_SECONDS_MAX = 10
FILL_TRIES_MAX = 50


class MountError(Exception):
    """A file system could not be mounted, or its size not be changed; the text says what `mount` said."""


def missing() -> str:
    """Why this machine cannot mount one; empty if it can."""
    try:
        with tempfile.TemporaryDirectory(prefix="tidemill-disk-") as folder, Disk(Path(folder)):
            return ""
    except MountError as error:
        return f"a disk of its own cannot be mounted: {error}"


class Disk:
    """A context manager over a file system that is mounted at a folder; what it held is gone at the end.

    Args:
        folder: An empty folder.
        kept: A folder that gets a copy of what the disk holds at the end.
    """

    def __init__(self, folder: Path, *, kept: Path | None = None) -> None:
        self.folder = folder
        self._kept = kept

    def __enter__(self) -> Self:
        _run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tidemill-chaos", str(self.folder))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._kept is not None:
                shutil.copytree(self.folder, self._kept, symlinks=True, dirs_exist_ok=True)
        finally:
            # A process that has not quite gone must not keep the name taken.
            _run("umount", "--lazy", str(self.folder))

    def fill(self) -> None:
        """There is not one byte left on it, until something on it is removed."""
        for _ in range(FILL_TRIES_MAX):
            found = os.statvfs(self.folder)
            # One that has grown in the meantime cannot have the size it had.
            with suppress(MountError):
                self._resize((found.f_blocks - found.f_bfree) * found.f_frsize)
                return
        raise MountError(f"{self.folder} grows faster than it can be filled")

    def empty(self) -> None:
        """There is space on it again."""
        self._resize(DISK_BYTES)

    def _resize(self, size: int) -> None:
        # A size of 0 would mean that there is no bound.
        _run("mount", "-o", f"remount,size={max(size, 1)}", str(self.folder))


def _run(*command: str) -> None:
    said = ""
    with suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, check=False)
        if done.returncode == 0:
            return
        said = done.stderr.strip()
    raise MountError(said or f"there is no `{command[0]}`")
