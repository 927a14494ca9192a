"""Free ports, each for one test process of this machine.

A port looks free until its server listens, which takes a broker seconds. So the process locks each port that it
gives out (one byte of a file) until it ends.
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
    """Let brokers of this process use these ports, too."""
    kraft.free_port = free_port


def _is_locked(port: int) -> bool:
    """Lock the port, unless another process has."""
    if not _opened:
        # Closing the file would release all locks of the process.
        path = Path(tempfile.gettempdir()) / f"tidemill-test-ports-{os.getuid()}"
        _opened.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    try:
        fcntl.lockf(_opened[0], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True
