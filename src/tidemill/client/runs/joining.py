"""The results of many batches become one file each, in the order of the input, and one receipt over all."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tidemill.schemas.resources.batch import FileReceipt

CHUNK_BYTES: Final = 1 << 20


def join(parts: Iterable[Path], target: Path) -> FileReceipt | None:
    """Put files one after another, in one step: the target has all of it or is left as it was.

    Args:
        parts: Files of whole lines; one that is not there has none.
        target: Where to; a file of the same folder is used on the way. Without a single line there is none.

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
            # What an earlier run left at the same place would be taken for this one's.
            target.unlink(missing_ok=True)
            return None
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return FileReceipt(lines=lines, bytes=size, sha256=digest.hexdigest())
