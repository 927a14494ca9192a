"""Joins the results of several batches into one file, in the order of the input."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tidemill.schemas.resources.batch import FileReceipt

CHUNK_BYTES: Final = 1 << 20


def join(parts: Iterable[Path], target: Path) -> FileReceipt | None:
    """Concatenate files; on an error the target stays as it was.

    Args:
        parts: Files of whole lines; a missing file counts as empty.
        target: Where to write them, atomically, through a temporary file beside it. Without a line it is removed.

    Returns:
        The receipt of the target; None without a line.

    Raises:
        OSError: The disk is full, or a file cannot be read.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    digest, size, lines = hashlib.sha256(), 0, 0
    try:
        with partial.open("wb") as file:
            for part in parts:
                if not part.exists():
                    continue
                with part.open("rb") as content:
                    while chunk := content.read(CHUNK_BYTES):
                        file.write(chunk)
                        digest.update(chunk)
                        size, lines = size + len(chunk), lines + chunk.count(b"\n")
            file.flush()
            os.fsync(file.fileno())
        if not size:
            # A file of an earlier run would pass for the output of this one.
            target.unlink(missing_ok=True)
            return None
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return FileReceipt(lines=lines, bytes=size, sha256=digest.hexdigest())
