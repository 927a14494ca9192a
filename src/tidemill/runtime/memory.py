"""Makes full garbage collections rarer and cheaper, and gives freed memory back to the system.

Nothing else runs during a full collection. Modules, routes and schemas are some 100,000 objects once a process is
ready, and traversing them takes 0.1 s or more. During a backlog the partition windows of a processor hold some
50,000 lines, which never become cyclic garbage; by default Python runs a full collection for every ten thousand,
which costs a tenth of the CPU of each line.

Young collections are rarer, too, which saves processors a tenth of the CPU of a line. So objects in a cycle live
longer, and nothing large may be in one: a variable that keeps an error forms a cycle with the error's traceback.

By default glibc takes blocks of up to 32 MiB from its heap once it has freed one of that size. Chunks of files,
replies and fetched records then lie between small objects that live longer, and the process keeps the holes.
"""

import ctypes
import gc
import os
from typing import Final

YOUNG_EVERY: Final = 10_000
"""Objects per young collection."""
FULL_EVERY: Final = 50
"""Middle collections per full one. Until the full one, older cycles stay; lines leave none
(`tests/unit/test_garbage.py`)."""


def freeze_startup_objects() -> None:
    """Exempt the existing objects from collection; call this once, when the process is ready."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_EVERY, gc.get_threshold()[1], FULL_EVERY)


MALLOC_PREFIX: Final = "MALLOC_"
"""Prefix of the variables with which an operator sets glibc's options."""
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
_OPTIONS: Final = ((_MMAP_THRESHOLD, 256 << 10), (_TRIM_THRESHOLD, 1 << 20), (_ARENA_MAX, 2))
"""Blocks of 256 KiB or more get their own mappings, which end when they are freed (`man mallopt`)."""


def return_freed_memory() -> None:
    """Make glibc give freed blocks back to the system, unless the operator has set its options."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version") and not any(name.startswith(MALLOC_PREFIX) for name in os.environ):
        for option, value in _OPTIONS:
            libc.mallopt(option, value)
