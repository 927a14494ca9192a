"""What another user of the machine may have put somewhere, or could change, is not used.

Only root and the user of this process count as trusted. Who is one of these can read and change everything, and no
rights of files help against them.
"""

import os
import stat
from pathlib import Path
from typing import Final

ROOT: Final = 0
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def make_private(folder: Path) -> str | None:
    """Have a folder that nobody else can look into; it is made where it is missing.

    Returns:
        What was changed about an existing folder, for the operator; None where nothing was.

    Raises:
        OSError: It belongs to somebody else, or others could put another one in its place.
    """
    check_place(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_ours(made := folder.lstat()):
        raise OSError(f"{folder} was made by another user (uid {made.st_uid})")
    check_place(folder.resolve())
    descriptor = os.open(folder.resolve(), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise OSError(f"{folder} belongs to another user (uid {status.st_uid})")
        if not status.st_mode & _OTHERS:
            return None
        mode = stat.S_IMODE(status.st_mode)
        os.fchmod(descriptor, 0o700)
        try:
            _tighten(folder.resolve())
        except OSError:
            # So that the next start looks at it again.
            os.fchmod(descriptor, mode)
            raise
        return f"other users could look into {folder} (mode {mode:o}); from now on only its owner can."
    finally:
        os.close(descriptor)


def check_place(path: Path) -> None:
    """See that nobody else can put something in the place of a path.

    Raises:
        OSError: The folder that it is in may be written by everybody, and not only to what is one's own.
    """
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    mode = parent.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise OSError(f"every user may replace what is in {parent} (mode {stat.S_IMODE(mode):o})")


def keep_unchanged(folder: Path) -> None:
    """See that nobody else can write to a folder, which others may read; it exists.

    Raises:
        OSError: It belongs to somebody else, or others may write to it and that cannot be changed.
    """
    check_place(folder)
    status = folder.stat()
    if not is_ours(status):
        raise OSError(f"{folder} belongs to another user (uid {status.st_uid})")
    if status.st_mode & _OTHERS_WRITE:
        folder.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS_WRITE)


def is_trusted(file: Path) -> bool:
    """Whether a file is there, and nobody else could have written it."""
    try:
        status = file.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and is_ours(status) and not status.st_mode & _OTHERS_WRITE


def is_ours(status: os.stat_result) -> bool:
    """Whether a file belongs to who counts as trusted."""
    return status.st_uid in {ROOT, os.geteuid()}


def _tighten(folder: Path) -> None:
    """Take the rights of others from all that is below: somebody may have it open."""
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where) / name
            status = path.lstat()
            if not is_ours(status):
                raise OSError(f"{path} belongs to another user (uid {status.st_uid})")
            if status.st_mode & _OTHERS and not stat.S_ISLNK(status.st_mode):
                path.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS)
