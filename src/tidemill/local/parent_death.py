"""Run a program so that it dies with the process that started it, even when that one is killed.

`command` wraps a command line; what it starts is this very file, which asks the kernel for the signal and then
becomes the program. It imports next to nothing, since it stands before every start.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def command(argv: list[str], *, niceness: int = 0) -> list[str]:
    """The command line that runs `argv` tethered to the current process.

    The kernel ties the program to the *thread* that starts it, so start it from one that lives as long as it.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(niceness), *argv]


def main() -> None:
    """Become the program of the command line, unless the starter is gone already."""
    parent, niceness, *argv = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        raise SystemExit(1)
    os.nice(int(niceness))
    os.execvp(argv[0], argv)  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    main()
