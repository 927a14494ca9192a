"""How a stage tells the supervisor that started it that it is ready for work, and that it is alive."""

import os
from contextlib import suppress

VARIABLE = "TIDEMILL_NOTIFY_FD"

_pipe: list[int] = []
"""The descriptor that the supervisor left open, once it was taken from the environment."""


def ready() -> None:
    """Say so; without a supervisor nothing happens."""
    if descriptor := os.environ.pop(VARIABLE, None):
        _pipe[:] = [int(descriptor)]
        # What this process starts has nothing to say there.
        os.set_inheritable(_pipe[0], False)
        os.set_blocking(_pipe[0], False)
    _say(b"ready\n")


def alive() -> None:
    """Say that the event loop turns; to be called on it, about each second, once the process is ready.

    Whoever has said so once is taken for dead when it says nothing for long.
    """
    _say(b"alive\n")


def _say(word: bytes) -> None:
    for descriptor in _pipe:
        # A supervisor that is stopped for a while leaves the pipe full; one that is gone ends this process.
        with suppress(OSError):
            os.write(descriptor, word)
