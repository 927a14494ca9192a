"""Runs a command of the client and turns its errors into a message and an exit code."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from pydantic import ValidationError

from tidemill.client.errors import Exit, Refused, Unreachable, UsageError
from tidemill.terminal import Console


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
    except (UsageError, Refused, Unreachable, ValidationError, OSError) as error:
        for line in f"tidemill: {message(error)}".split("\n"):
            console.print(line, style="red")
        return Exit.UNREACHABLE if isinstance(error, Unreachable | ValidationError) else Exit.USAGE


def message(error: Exception) -> str:
    """An expected error in words for the user."""
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, fault["loc"]))
        return f"the service does not speak the Batch API: {field}: {fault['msg']}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
