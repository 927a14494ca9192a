"""Checks the header `Host`.

A page of another site can point its own name at 127.0.0.1, and its script then calls the API as its own origin
(DNS rebinding). The browser sends that name in the header `Host`, so a server on a loopback address answers only
requests to names of this machine.
"""

import fnmatch
import functools
from collections.abc import Callable, Sequence
from typing import Final

from starlette.types import Receive, Scope, Send

from tidemill.api import error_handlers, errors
from tidemill.configuration.connections import is_local

Headers = Sequence[tuple[bytes, bytes]]
NAMES_MAX: Final = 1024
"""Names whose result is cached."""


def check(patterns: tuple[str, ...] | None, listens_on: str) -> Callable[[Headers], bool]:
    """Return the check of a server that listens on an address: whether a request's `Host` is allowed.

    In patterns, `*` stands for any part of a name; None is the default of the setting.
    """
    if patterns is None and not is_local(listens_on):
        return lambda _: True
    # An IPv6 address is in brackets, which mean a set of characters to fnmatch.
    lower = None if patterns is None else tuple(pattern.lower().replace("[", "[[]") for pattern in patterns)

    @functools.lru_cache(NAMES_MAX)
    def is_allowed_name(host: bytes) -> bool:
        name = host.decode("latin-1").lower()
        if not name.endswith("]"):
            name = name.rpartition(":")[0] or name
        if lower is None:
            return is_local(name)
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in lower)

    def is_allowed(headers: Headers) -> bool:
        for name, value in headers:
            if name == b"host":
                return is_allowed_name(value)
        return is_allowed_name(b"")

    return is_allowed


async def misdirected(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 421."""
    await error_handlers.answer(errors.misdirected(), scope)(scope, receive, send)
