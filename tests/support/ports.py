"""Ports that no two test processes of a machine take for the same server.

A port is free until its server listens, which takes a broker seconds. So each port that is given out is locked
(one byte of a file) until the process ends.
"""

import fcntl
import os
import tempfile
from pathlib import Path

from tidemill.local.embedded import kraft

_PICK = kraft.free_port
_given: set[int] = set()
_opened: list[int] = []


def free_port(*, other_than: int = 0) -> int:
    """See `kraft.free_port`."""
    while True:
        port = _PICK(other_than=other_than)
        if port not in _given and _is_locked(port):
            _given.add(port)
            return port


def keep_apart() -> None:
    """Have brokers of this process take such ports as well."""
    kraft.free_port = free_port


def _is_locked(port: int) -> bool:
    """Lock the port, unless another process has."""
    if not _opened:
        # Closing it would give up all locks of the process.
        path = Path(tempfile.gettempdir()) / f"tidemill-test-ports-{os.getuid()}"
        _opened.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    try:
        fcntl.lockf(_opened[0], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True
