"""What a process keeps for as long as it lives is not looked at again and again for what could be let go of.

Modules, routes and schemas are some 100,000 objects by the time a process is ready. A full collection walks
through all of them, which takes 0.1 s and more, and nothing else happens meanwhile: a request waits for as long.
"""

import gc


def settle() -> None:
    """To be called once, when the process is ready: what is there by then stays, and is collected no more."""
    gc.collect()
    gc.freeze()
