"""A library that all processes of an installation preload, to change their clocks and slow their disks.

It is compiled from `meddle.c` by the machine's C compiler, and reads what it has to do from a file in shared
memory, so that the clock of a process can be stepped, and its disk slowed down, while it runs. It needs no
privilege.
"""

import json
import mmap
import shutil
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from support.waiting import WAIT_SECONDS_MAX

COMPILERS = ("cc", "gcc", "clang")
NUMBER = struct.Struct("=q")
STORE_MS, DISK_MS, AHEAD_MS, AHEAD_MS_OF = range(4)
"""Places in the file, as in `meddle.c`; from the last on there is one for each number of a process."""
PIDS_MAX = 1 << 22
MS = 1_000


def missing() -> str:
    """Why this machine cannot use it; empty if it can."""
    return "" if _compiler() else "this machine has no C compiler"


class Meddle:
    """A context manager over the library and its file.

    Args:
        folder: An existing folder for both.
        store: The folder whose objects are slow to reach when that is asked for.
    """

    def __init__(self, folder: Path, store: Path) -> None:
        self._library = folder / "meddle.so"
        self._file = folder / "meddle"
        self._store = store
        self._control: mmap.mmap | None = None

    def __enter__(self) -> Self:
        names = {"MEDDLE_FILE": str(self._file), "MEDDLE_STORE": f"{self._store}/"}
        defined = [f"-D{name}={json.dumps(value)}" for name, value in names.items()]
        command = [_compiler() or "cc", "-shared", "-fPIC", "-O2", *defined, "-o", str(self._library)]
        source = Path(__file__).with_name("meddle.c")
        subprocess.run([*command, str(source), "-ldl"], check=True, timeout=WAIT_SECONDS_MAX)
        with self._file.open("w+b") as file:
            # Nearly all of it is a hole, which takes no memory.
            file.truncate((AHEAD_MS_OF + PIDS_MAX) * NUMBER.size)
            self._control = mmap.mmap(file.fileno(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._control is not None:
            self._control.close()

    @property
    def environ(self) -> dict[str, str]:
        """What a process must be started with."""
        return {"LD_PRELOAD": str(self._library)}

    def slow_store(self, seconds: float) -> None:
        """From now on each object takes so much longer to open, to put in place, or to remove."""
        self._set(STORE_MS, seconds)

    def slow_disk(self, seconds: float) -> None:
        """From now on each write to a file and each sync takes so much longer."""
        self._set(DISK_MS, seconds)

    def step(self, seconds: float, pids: Iterable[int] = ()) -> None:
        """From now on the clocks of these processes are so far ahead of true time; without any, all clocks."""
        for place in [AHEAD_MS_OF + pid for pid in pids] or [AHEAD_MS]:
            self._set(place, seconds)

    def heal(self) -> None:
        """All clocks that were stepped together are right, and all disks are fast."""
        for place in (STORE_MS, DISK_MS, AHEAD_MS):
            self._set(place, 0.0)

    def _set(self, place: int, seconds: float) -> None:
        assert self._control is not None
        NUMBER.pack_into(self._control, place * NUMBER.size, round(seconds * MS))


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, COMPILERS)), None)
