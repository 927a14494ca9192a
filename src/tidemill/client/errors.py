"""Exit codes of the client's commands, the errors that end a command, how it ends with them, and their wording."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import IntEnum
from http import HTTPStatus
from typing import Any, Final

from tidemill.terminal import Console


class Exit(IntEnum):
    """Exit code of a command."""

    OK = 0
    INEXACT = 1
    """The files do not hold each line exactly once, or differ from the receipt; a check or a test call fails."""
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


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How messages name options: as the command line does, or as arguments of the Python client.

    Attributes:
        call: What the user repeats to resume a run.
        base_url: The address of the service.
        api_key: The API key.
        output: The path of the output.
        overwrite: Allows existing files to be overwritten.
        again: Starts over.
        retry_failed: Asks failed rows of the output again; None if the user does not see the output.
    """

    call: str = "command"
    base_url: str = "--base-url"
    api_key: str = "--api-key"
    output: str = "-o"
    overwrite: str = "--force"
    again: str = "--again"
    retry_failed: str | None = "--retry-failed"


COMMANDS: Final = Wording()
LIBRARY: Final = Wording(
    call="call",
    base_url="base_url",
    api_key="api_key",
    output="output",
    overwrite="overwrite=True",
    again="again=True",
    retry_failed=None,
)


class UsageError(Exception):
    """An argument, an option or a local file is unusable; the text says why."""


class Rejected(UsageError):
    """The service rejected the input; the text names its faults."""


class Unreachable(Exception):
    """The service does not answer, or answers that it is unavailable (5xx) for the moment."""


class NoSpace(Unreachable):
    """The disk of the service has no room for the request (507); it lasts until someone deletes something.

    Attributes:
        may_have_happened: An earlier attempt got no answer, so the service may have carried it out.
    """

    may_have_happened = False


class Refused(Exception):
    """The service rejected a request.

    Attributes:
        status: HTTP status: 4xx, or 5xx if a retry does not help.
        code: The error code of the service, if any.
        may_have_happened: An earlier attempt got no answer, so the service may have carried it out.
    """

    def __init__(self, status: int, message: str, code: str | None) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.may_have_happened = False


class OtherService(UsageError):
    """The address is not that of a Batch API: it lacks the route, or answers with something else.

    Attributes:
        status: HTTP status.
        may_have_happened: The service may have carried out the request: it did not say otherwise.
    """

    def __init__(self, status: int, url: str, why: str) -> None:
        super().__init__(f"{url} does not speak the Batch API: {why}")
        self.status = status
        self.may_have_happened = status < HTTPStatus.BAD_REQUEST


def run(console: Console, command: Callable[[], Coroutine[Any, Any, Exit]]) -> Exit:
    """Run a command, which checks the options and returns the work to do; returns its exit code."""
    try:
        return asyncio.run(command())
    except KeyboardInterrupt:
        return Exit.DETACHED
    except BrokenPipeError:
        # The reader of stdout is gone; without this the interpreter prints an error when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DETACHED
    except (UsageError, Refused, Unreachable, OSError) as error:
        for line in f"tidemill: {message(error)}".split("\n"):
            console.print(line, style="red")
        if step := next_step(error):
            console.print(step)
        if isinstance(error, Rejected):
            return Exit.FAILED
        return Exit.UNREACHABLE if isinstance(error, Unreachable) else Exit.USAGE


def message(error: Exception) -> str:
    """An expected error in words for the user."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


_STEPS: Final[Mapping[int, str]] = {
    401: "Pass a valid key (--api-key, TIDEMILL_API_KEY); an administrator makes one with `tidemill keys create`.",
    403: "Use a key with more rights; an administrator makes one: `tidemill keys create --role ROLE`.",
    404: (
        "Check the id or the name: `tidemill list`, `tidemill models list`, `tidemill webhooks deliveries` "
        "and so on show what exists."
    ),
    429: "Try again later, or make room: `tidemill cancel` ends a batch, `tidemill delete` removes one.",
}
"""What to do after a refusal, by HTTP status."""


_START: Final = "`tidemill up` starts a service on this machine; `tidemill doctor` finds what is wrong with one."
_ROOM: Final = (
    "Make room: `tidemill delete` removes a finished batch with its results; the page Files of the dashboard and "
    "`DELETE /v1/files/ID` remove files. `tidemill doctor` shows the free space."
)


def next_step(error: Exception) -> str | None:
    """A hint on what to do after an error whose text has none."""
    match error:
        case OtherService():
            return (
                "Check --base-url or TIDEMILL_BASE_URL: it names Tidemill, not an inference server, "
                "and usually ends in /v1."
            )
        case Refused():
            return _STEPS.get(error.status)
        case Unreachable():
            return _ROOM if isinstance(error, NoSpace) else _START
        case PermissionError():
            return "Check the rights of the file, or name another."
        case FileNotFoundError():
            return "Check the path."
    return None
