"""Makes full garbage collections rarer and cheaper, since nothing else runs during one.

Modules, routes and schemas are some 100,000 objects once a process is ready; a full collection of them takes 0.1 s
and more. The partition windows of a processor hold some 50,000 lines during a backlog, which never become garbage
in cycles; Python ran a full collection for every ten thousand of them, which cost a tenth of the CPU of each line.

Young collections stay as frequent as Python makes them. One for every 10,000 objects, and rarer middle and full
ones with it, saved 1.3 us a line, but processors then held 500 to 600 MiB instead of 175: large objects in cycles
waited for it.
"""

import gc
from typing import Final

FULL_EVERY: Final = 50
"""Middle collections per full one. Until the full one, older cycles stay: those of a record in a stage, about 1
KiB."""


def freeze_startup_objects() -> None:
    """Exempt the present objects from collection; call this once, when the process is ready."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], FULL_EVERY)
