"""Disks for the data folder and for the store, which can be filled: file systems in memory.

Mounting them takes a privilege (root on a plain machine). Filling a disk shrinks it to the size of its contents,
and so needs no memory.
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
    """`mount` failed to mount or resize a file system; the text has its message."""


def missing() -> str:
    """Why this machine cannot mount one; empty if it can."""
    try:
        with tempfile.TemporaryDirectory(prefix="tidemill-disk-") as folder, Disk(Path(folder)):
            return ""
    except MountError as error:
        return f"a disk of its own cannot be mounted: {error}"


class Disk:
    """A file system mounted at a folder, as a context manager; its contents are gone at the end.

    Args:
        folder: An empty folder.
        kept: A folder that gets a copy of the contents at the end.
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
            # Lazily, since a process that is still ending may hold files open.
            _run("umount", "--lazy", str(self.folder))

    def fill(self) -> None:
        """Leave no free byte on it until a file is removed."""
        for _ in range(FILL_TRIES_MAX):
            found = os.statvfs(self.folder)
            # If it has grown in the meantime, `mount` refuses the smaller size.
            with suppress(MountError):
                self._resize((found.f_blocks - found.f_bfree) * found.f_frsize)
                return
        raise MountError(f"{self.folder} grows faster than it can be filled")

    def empty(self) -> None:
        """Give it free space again."""
        self._resize(DISK_BYTES)

    def _resize(self, size: int) -> None:
        # A size of 0 would mean no limit.
        _run("mount", "-o", f"remount,size={max(size, 1)}", str(self.folder))


def _run(*command: str) -> None:
    said = ""
    with suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, check=False)
        if done.returncode == 0:
            return
        said = done.stderr.strip()
    raise MountError(said or f"there is no `{command[0]}`")
