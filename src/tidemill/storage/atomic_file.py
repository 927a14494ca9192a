"""Replaces files as a whole: a crash leaves the old file or the new one."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

PARTIAL: Final = ".part"
"""The end of the name of a file that is not whole yet; a crash leaves it."""


@contextmanager
def replacing(target: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Write a file that durably replaces the target when the block succeeds; otherwise the target stays as it was.

    The umask also restricts `mode`.
    """
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            # A record that the file is complete, written later, must not survive a power cut without the file.
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_private(file: Path, text: str) -> None:
    """Replace a file by one that only its owner can read, whatever the umask."""
    with replacing(file, mode=0o600) as new:
        new.write(text.encode())
