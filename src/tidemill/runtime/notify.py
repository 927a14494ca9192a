"""Notifies the supervisor of a process through a pipe: progress of its start, ready, then alive."""

import os
from contextlib import suppress

VARIABLE = "TIDEMILL_NOTIFY_FD"

_pipe: list[int] = []
"""The descriptor that the supervisor left open; set by the first word."""

PROGRESS = b"progress"
READY = b"ready"
BEATS = b"beats"
"""Follows `ready` if the process will send `alive` from then on."""


def progress() -> None:
    """Notify the supervisor that the start makes progress, so that it may take longer."""
    _send(PROGRESS)


def ready(*, beats: bool = False) -> None:
    """Notify the supervisor, if there is one, that the process is ready.

    With `beats` the process promises to call `alive` from now on; the supervisor restarts it if it falls silent.
    """
    _send(READY + b" " + BEATS if beats else READY)


def alive() -> None:
    """Notify the supervisor that the event loop runs; call this on it about once a second."""
    if _pipe:
        _send(b"alive")


def _send(word: bytes) -> None:
    if given := os.environ.pop(VARIABLE, None):
        _pipe[:] = [int(given)]
        # Child processes must not write to the pipe.
        os.set_inheritable(_pipe[0], False)
        os.set_blocking(_pipe[0], False)
    for descriptor in _pipe:
        # A suspended supervisor leaves the pipe full; the exit of a supervisor ends this process.
        with suppress(OSError):
            os.write(descriptor, word + b"\n")
