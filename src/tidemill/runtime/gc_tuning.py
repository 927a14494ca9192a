"""What a process keeps for as long as it lives is not looked at again and again for what could be let go of.

Modules, routes and schemas are some 100,000 objects by the time a process is ready. A full collection walks
through all of them, which takes 0.1 s and more, and nothing else happens meanwhile: a request waits for as long.

The same holds for what a process keeps for a while. The lanes of a processor are full while there is a backlog:
some 50,000 lines, which come and go without a collection, since nothing refers to them in a ring. Python went
through all of them once for some ten thousand of them, and stood still for 0.1 s: a line of a long backlog cost a
tenth more by it. So everything is looked through less often, and what is new as often as ever.
"""

import gc
from typing import Final

FULL_EVERY: Final = 50
"""So many collections of what is no longer new come before one of everything. What has to wait for that one are
rings that were there for a while: those of a record on its way through a stage, a kilobyte or so."""


def freeze_startup_objects() -> None:
    """To be called once, when the process is ready: what is there by then stays, and is collected no more."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], FULL_EVERY)
