"""Checks that no other user of the machine can write, or has written, the files that Tidemill uses.

Trusted are root and the user of this process; permissions cannot protect files from them.
"""

import errno
import grp
import os
import pwd
import stat
from pathlib import Path
from typing import Final

ROOT: Final = 0
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def make_private(folder: Path) -> str | None:
    """Create a folder that only this user can access, or restrict an existing one.

    Returns:
        A message for the operator about changed permissions, or None.

    Raises:
        OSError: The folder belongs to another user, or others could replace it.
    """
    check_place(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_ours(made := folder.lstat()):
        raise OSError(f"{folder} was created by another user (uid {made.st_uid})")
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
            # The next start tries again.
            os.fchmod(descriptor, mode)
            raise
        return f"other users could read {folder} (mode {mode:o}); from now on only its owner can."
    finally:
        os.close(descriptor)


def check_place(path: Path) -> None:
    """Check that other users cannot replace a path.

    Raises:
        OSError: Its parent folder is writable for all users and has no sticky bit.
    """
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    mode = parent.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise OSError(f"every user may replace files in {parent} (mode {stat.S_IMODE(mode):o})")


def keep_unchanged(folder: Path) -> None:
    """Remove the write permission of other users from an existing folder.

    Raises:
        OSError: It belongs to another user, or the permission cannot be changed.
    """
    check_place(folder)
    status = folder.stat()
    if not is_ours(status):
        raise OSError(f"{folder} belongs to another user (uid {status.st_uid})")
    if status.st_mode & _OTHERS_WRITE:
        folder.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS_WRITE)


class Untrusted(PermissionError):
    """Another user could have written a file that a command found by itself."""


def is_trusted(file: Path) -> bool:
    """Whether a file, or the target of a link, exists and no other user could have written it."""
    return _fault(file) is None


def check_found(file: Path, option: str) -> None:
    """Check a file that a command found by itself, because no one named it with an option.

    In a container root often works in a folder of another user: root trusts the owner of the folder.

    Raises:
        Untrusted: Another user could have written it.
    """
    if (fault := _fault(file)) and not (os.geteuid() == ROOT and _is_of_owner(file)):
        raise Untrusted(errno.EPERM, f"{fault}; if you trust it, name it with {option}", str(file))


def _fault(file: Path) -> str | None:
    """Why a file is not trusted; None if it is."""
    try:
        link, status = file.lstat(), file.stat()
    except OSError as error:
        return error.strerror or "it is unreadable"
    for each in (link, status):
        if not is_ours(each):
            return f"another user (uid {each.st_uid}) owns {'it' if each is link else 'its target'}"
    if not stat.S_ISREG(status.st_mode):
        return "it is not a file"
    if _others_write(status):
        return f"other users may write to it (mode {stat.S_IMODE(status.st_mode):o})"
    return None


def _is_of_owner(file: Path) -> bool:
    """Whether the owner of the folder owns the file, too, and no other user may write to either."""
    try:
        status, folder = file.lstat(), file.parent.stat()
    except OSError:
        return False
    is_safe = not _others_write(status) and not _others_write(folder)
    return stat.S_ISREG(status.st_mode) and status.st_uid == folder.st_uid and is_safe


def is_ours(status: os.stat_result) -> bool:
    """Whether a file belongs to root or to this user."""
    return status.st_uid in {ROOT, os.geteuid()}


def _others_write(status: os.stat_result) -> bool:
    """Whether other users may write to a file; the owner's own group, which many systems make, has none."""
    if not status.st_mode & stat.S_IWGRP:
        return bool(status.st_mode & stat.S_IWOTH)
    try:
        owner, group = pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid)
    except KeyError:
        return True
    is_own = group.gr_name == owner and set(group.gr_mem) <= {owner}
    return bool(status.st_mode & stat.S_IWOTH) or not is_own


def _tighten(folder: Path) -> None:
    """Remove other users' permissions from everything below: another process may have a folder open."""
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where) / name
            status = path.lstat()
            if not is_ours(status):
                raise OSError(f"{path} belongs to another user (uid {status.st_uid})")
            if status.st_mode & _OTHERS and not stat.S_ISLNK(status.st_mode):
                path.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS)
