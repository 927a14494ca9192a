"""Checks which files another user of this machine can reach."""

import json
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

UID = 54_321


def reach(paths: Iterable[Path]) -> dict[str, list[str]]:
    """What another user may do with each path: `read`, `write`, and for a folder `make` something in it.

    As root, the test becomes that user and tries; otherwise it derives the answer from the permissions.
    """
    listed = [str(path) for path in paths]
    if os.geteuid() == 0:
        found = _as_another(lambda: {path: _tried(path) for path in listed})
    else:
        found = {path: _judged(Path(path)) for path in listed}
    return {path: ways for path, ways in found.items() if ways}


def read(paths: Iterable[Path]) -> dict[str, str]:
    """The files that another user can read there."""
    listed = [str(path) for path in paths if os.geteuid() == 0 or "read" in _judged(path)]
    found = _as_another(lambda: {path: _content(path) for path in listed})
    return {path: text for path, text in found.items() if text is not None}


def _as_another(work: Callable[[], Any]) -> Any:
    """As root, run it in a fork of this process as another user."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            os.close(reading)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(UID)
                os.setuid(UID)
            with os.fdopen(writing, "w") as pipe:
                json.dump(work(), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(answer)


def _tried(path: str) -> list[str]:
    ways = {"read": os.O_RDONLY, "write": os.O_WRONLY | os.O_NONBLOCK}
    if os.path.isdir(path):  # noqa: PTH112  which is False where nothing can be seen
        with suppress(OSError):
            os.close(os.open(f"{path}/made-by-another", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            return ["make"]
        ways.pop("write")
    found = []
    for name, flags in ways.items():
        with suppress(OSError):
            os.close(os.open(path, flags))
            found.append(name)
    return found


def _judged(path: Path) -> list[str]:
    try:
        if not all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents):
            return []
        mode = path.stat().st_mode
    except PermissionError:
        return []
    write = "make" if stat.S_ISDIR(mode) else "write"
    return [name for name, bit in (("read", stat.S_IROTH), (write, stat.S_IWOTH)) if mode & bit]


def _content(path: str) -> str | None:
    try:
        return Path(path).read_bytes().decode("utf-8", "replace")
    except OSError:
        return None
