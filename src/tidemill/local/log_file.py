"""The log of a process: a file of bounded size and its predecessor."""

from pathlib import Path
from typing import BinaryIO

LOG_BYTES_MAX = 8 * 1024 * 1024
TAIL_BYTES = 16 * 1024


class LogFile:
    """A file to append to, in an existing folder; once full it becomes `NAME.1` and replaces its predecessor.

    The last write may exceed `bytes_max`.
    """

    def __init__(self, path: Path, *, bytes_max: int = LOG_BYTES_MAX) -> None:
        self.path = path
        self._bytes_max = bytes_max
        self._file: BinaryIO = path.open("ab", buffering=0)

    def write(self, chunk: bytes) -> None:
        """Append the bytes."""
        if self._file.tell() >= self._bytes_max:
            # A disk that refuses this leaves the full file in use.
            self.path.replace(f"{self.path}.1")
            full, self._file = self._file, self.path.open("ab", buffering=0)
            full.close()
        self._file.write(chunk)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def tail(path: Path, lines_max: int) -> str:
    """The last lines of a file, fewer if they are long; empty without a file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines_max:])
    except FileNotFoundError:
        return ""
