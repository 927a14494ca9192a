"""Exit codes of the client's commands, and the errors that end a command."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit code of a command."""

    OK = 0
    INEXACT = 1
    """The files do not hold each line exactly once, or differ from the receipt."""
    USAGE = 2
    """The command is wrong, or the service refused it."""
    SOME_FAILED = 3
    FAILED = 4
    """The service rejected the input."""
    EXPIRED = 5
    CANCELLED = 6
    UNREACHABLE = 7
    DETACHED = 130
    """Ctrl-C; the batch goes on."""


class UsageError(Exception):
    """An argument, an option or a local file is unusable; the text says why."""


class Unreachable(Exception):
    """The service does not answer, or answers that it is unavailable (5xx)."""


class Refused(Exception):
    """The service rejected a request.

    Attributes:
        status: HTTP status, 4xx.
        code: The error code of the service, if any.
        may_have_happened: An earlier attempt got no answer, so the service may have carried it out.
    """

    def __init__(self, status: int, message: str, code: str | None) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.may_have_happened = False
