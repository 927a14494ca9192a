"""Runs a program that the kernel kills when its parent dies.

`command` wraps a command line. The wrapper is this file: it asks the kernel for the signal and then executes the
program. It imports little, since every start passes through it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def command(argv: list[str], *, niceness: int = 0) -> list[str]:
    """The command line that runs `argv` until the current process dies.

    The kernel watches the *thread* that starts the program: start it from one that lives long enough.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(niceness), *argv]


def die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent dies; exits if `parent` has already ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


def main() -> None:
    """Execute the program, unless the parent has already ended."""
    parent, niceness, *argv = sys.argv[1:]
    die_with(int(parent))
    os.nice(int(niceness))
    os.execvp(argv[0], argv)  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    main()
