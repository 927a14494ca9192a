"""Makes garbage collections rarer and cheaper, since nothing else runs during one.

Modules, routes and schemas are some 100,000 objects once a process is ready; a full collection of them takes 0.1 s
and more. The partition windows of a processor hold some 50,000 lines during a backlog, which never become garbage
in cycles; Python ran a full collection for every ten thousand of them, which cost a tenth of the CPU of each line.

The calls in flight are some thousand objects, which a young collection finds alive. One for every 700 new objects,
Python's default, looked at them again and again: 1.5 us of the CPU of each line, and 0.2 us with one for 10,000.
"""

import gc
from typing import Final

YOUNG_OBJECTS: Final = 10_000
"""New objects per young collection."""
MIDDLE_EVERY: Final = 2
"""Young collections per middle one."""
FULL_EVERY: Final = 20
"""Middle collections per full one. Until the full one, older cycles stay: those of a record in a stage, about 1
KiB."""


def freeze_startup_objects() -> None:
    """Exempt the present objects from collection; call this once, when the process is ready."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, MIDDLE_EVERY, FULL_EVERY)
