"""The fork server: a process that has imported the stages, and forks the process of each of them.

Each request comes with the ends of two pipes and a socket, from which the fork reads its environment, so the
server has no secret at any time. It reports each process that it has forked, and each that has ended. It has one
thread and no event loop, and ends when its socket is closed. For Linux only. See
`docs/decisions/0078-stages-are-forks.md`.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import setproctitle

from tidemill.local import parent_death
from tidemill.runtime import notify
from tidemill.schemas.log.acls import STAGES

FORK: Final = b"f"
"""The message of a request."""
DESCRIPTORS: Final = 3
"""Number of descriptors that come with it."""
_CHUNK_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Request:
    """A stage to run.

    Attributes:
        stage: Its command.
        environ: The whole of its environment.
    """

    stage: str
    environ: Mapping[str, str] = field(repr=False)

    def encoded(self) -> bytes:
        """What its fork reads."""
        return json.dumps({"stage": self.stage, "environ": dict(self.environ)}).encode()


def main() -> None:
    """Serve until the socket is closed; in a fork, run its stage."""
    setproctitle.setproctitle("tidemill fork-server")
    for each in STAGES:
        importlib.import_module(f"tidemill.{each}.app")
    command_line = importlib.import_module("tidemill.__main__")
    # A collection in a fork would copy the pages of all that it shares.
    gc.collect()
    gc.freeze()
    if (descriptors := _serve(socket.socket(fileno=int(sys.argv[1])))) is not None:
        stage = _become(*descriptors)
        setproctitle.setproctitle(f"tidemill {stage}")
        sys.argv = [str(command_line.__file__), stage]
        command_line.main()


def _serve(control: socket.socket) -> list[int] | None:
    """Fork until the socket is closed, then return None; in a fork return the descriptors of its request."""
    server = os.getpid()
    with closing(control), _ends() as ended:
        while True:
            ready, _, _ = select.select([control.fileno(), ended], [], [])
            if ended in ready:
                _report_ends(ended, control)
            if control.fileno() not in ready:
                continue
            word, descriptors, _, _ = socket.recv_fds(control, len(FORK), DESCRIPTORS)
            if not word:
                return None
            if _fork(control, descriptors) == 0:
                break
            for descriptor in descriptors:
                os.close(descriptor)
    os.setpgid(0, 0)
    parent_death.die_with(server)
    return descriptors


def _fork(control: socket.socket, descriptors: list[int]) -> int:
    """Fork, and report the process, or why there is none; returns 0 in the fork."""
    if len(descriptors) < DESCRIPTORS:
        _say(control, {"fault": "the process that forks the stages may not open more files"})
        return -1
    try:
        pid = os.fork()
    except OSError as error:
        _say(control, {"fault": f"the system forks no process: {error}"})
        return -1
    if pid:
        # Here, too, for a supervisor that kills the group before the fork has run.
        with suppress(OSError):
            os.setpgid(pid, pid)
        _say(control, {"pid": pid})
    return pid


@contextmanager
def _ends() -> Iterator[int]:
    """A descriptor that is readable when a process has ended.

    Meanwhile signals wait that end a whole installation: the stages stop in order, and then the socket is closed.
    """
    with ExitStack() as stack:
        readable, writable = os.pipe()
        for end in (readable, writable):
            stack.callback(os.close, end)
            os.set_blocking(end, False)
        waiting = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        stack.callback(
            signal.pthread_sigmask, signal.SIG_SETMASK, signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
        )
        stack.callback(signal.signal, signal.SIGCHLD, signal.signal(signal.SIGCHLD, lambda *_: None))
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writable, warn_on_full_buffer=False))
        yield readable


def _report_ends(ended: int, control: socket.socket) -> None:
    os.read(ended, _CHUNK_BYTES)
    with suppress(ChildProcessError):
        while (end := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            _say(control, {"pid": end[0], "code": os.waitstatus_to_exitcode(end[1])})


def _say(control: socket.socket, message: dict[str, int | str]) -> None:
    # A supervisor that has ended closes the socket; the next look at it ends the server.
    with suppress(OSError):
        control.sendall(json.dumps(message).encode() + b"\n")


def _become(output: int, messages: int, request: int) -> str:
    """Turn a fork into the process of a stage; returns the stage."""
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        os.dup2(output, old.fileno())
        # A new stream, since the old one remembers that it was a file.
        new = open(old.fileno(), "w", 1, old.encoding, old.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, new)
    os.close(output)
    with open(request, "rb") as stream:
        asked = Request(**json.loads(stream.read()))
    os.environ.clear()
    os.environ.update({**asked.environ, notify.VARIABLE: str(messages)})
    return asked.stage


if __name__ == "__main__":
    main()
