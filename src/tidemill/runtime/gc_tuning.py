"""Makes garbage collections rarer and cheaper, since nothing else runs during one.

Modules, routes and schemas are some 100,000 objects once a process is ready; a full collection of them takes 0.1 s
and more. The partition windows of a processor hold some 50,000 lines during a backlog, which never become garbage
in cycles; Python ran a full collection for every ten thousand of them, which cost a tenth of the CPU of each line.

The calls in flight are some thousand objects, which a young collection finds alive. One for every 700 new objects,
Python's default, looked at them again for each second call: a tenth of the CPU of each line once more.
"""

import gc
from typing import Final

YOUNG_OBJECTS: Final = 10_000
"""New objects per young collection; cycles among them stay until then, about 2 MiB."""
FULL_EVERY: Final = 50
"""Middle collections per full one. Until the full one, older cycles stay: those of a record in a stage, about 1
KiB."""


def freeze_startup_objects() -> None:
    """Exempt the present objects from collection; call this once, when the process is ready."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, gc.get_threshold()[1], FULL_EVERY)
