"""A library that all processes of an installation preload, Kafka too, to change their clocks and slow their disks.

The machine's C compiler builds it from `meddle.c`. It reads its orders from a file in shared memory, so a run can
step the clock of a process, and slow down its disk, at any time. It needs no privilege.
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
"""Places in the file, as in `meddle.c`; from the last one on, there is a place for each pid."""
PIDS_MAX = 1 << 22
MS = 1_000


def missing() -> str:
    """Why this machine cannot use it; empty if it can."""
    return "" if _compiler() else "this machine has no C compiler"


class Meddle:
    """The library and its control file, as a context manager.

    Args:
        folder: An existing folder for both.
        store: The folder whose objects `slow_store` makes slow.
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
            # The file is sparse, so it takes hardly any memory.
            file.truncate((AHEAD_MS_OF + PIDS_MAX) * NUMBER.size)
            self._control = mmap.mmap(file.fileno(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._control is not None:
            self._control.close()

    @property
    def environ(self) -> dict[str, str]:
        """Environment variables that load the library into a process."""
        return {"LD_PRELOAD": str(self._library)}

    def slow_store(self, seconds: float) -> None:
        """Delay each open, rename and removal of an object by this time."""
        self._set(STORE_MS, seconds)

    def slow_disk(self, seconds: float) -> None:
        """Delay each write and each sync by this time."""
        self._set(DISK_MS, seconds)

    def step(self, seconds: float, pids: Iterable[int] = ()) -> None:
        """Set the clocks of these processes, or all clocks, ahead of true time.

        Each process must have loaded the library: its clock would not change otherwise, and the run test nothing.
        """
        pids = list(pids)
        for pid in pids:
            assert str(self._library) in Path(f"/proc/{pid}/maps").read_text("utf-8"), f"{pid} lacks the library"
        for place in [AHEAD_MS_OF + pid for pid in pids] or [AHEAD_MS]:
            self._set(place, seconds)

    def heal(self) -> None:
        """Undo delays, and the step of all clocks."""
        for place in (STORE_MS, DISK_MS, AHEAD_MS):
            self._set(place, 0.0)

    def _set(self, place: int, seconds: float) -> None:
        assert self._control is not None
        NUMBER.pack_into(self._control, place * NUMBER.size, round(seconds * MS))


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, COMPILERS)), None)
