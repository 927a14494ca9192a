"""How a stage tells the supervisor that started it that it is ready for work, and that it is alive."""

import os
from contextlib import suppress

VARIABLE = "TIDEMILL_NOTIFY_FD"

_pipe: list[int] = []
"""The descriptor that the supervisor left open, once it was taken from the environment."""


BEATS = b"beats"
"""In the first word of a process that goes on to say that it is alive."""


def ready(*, beats: bool = False) -> None:
    """Say so; without a supervisor nothing happens.

    Args:
        beats: Whether `alive` will be called from now on: a process that promised it and then says nothing for
            long is taken for dead.
    """
    if descriptor := os.environ.pop(VARIABLE, None):
        _pipe[:] = [int(descriptor)]
        # What this process starts has nothing to say there.
        os.set_inheritable(_pipe[0], False)
        os.set_blocking(_pipe[0], False)
    _say(b"ready %b\n" % BEATS if beats else b"ready\n")


def alive() -> None:
    """Say that the event loop turns; to be called on it, about each second."""
    _say(b"alive\n")


def _say(word: bytes) -> None:
    for descriptor in _pipe:
        # A supervisor that is stopped for a while leaves the pipe full; one that is gone ends this process.
        with suppress(OSError):
            os.write(descriptor, word)
