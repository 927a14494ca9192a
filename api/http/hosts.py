"""Which names a request may call the server by.

A page of another site can point a name of its own at 127.0.0.1, and its script then asks the API as its own origin
(DNS rebinding). The browser says that name in the header `Host`, so a server on a loopback address answers only to
names of this machine.
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
"""Names whose answer is kept."""


def check(patterns: tuple[str, ...] | None, listens_on: str) -> Callable[[Headers], bool]:
    """Make the check of a server.

    Args:
        patterns: Names that it answers to, `*` for any part of one; None is the default of the setting.
        listens_on: Its address.
    """
    if patterns is None and not is_local(listens_on):
        return lambda _: True
    lower = None if patterns is None else tuple(pattern.lower() for pattern in patterns)

    @functools.lru_cache(NAMES_MAX)
    def is_answered(host: bytes) -> bool:
        name = host.decode("latin-1").lower()
        if not name.endswith("]"):
            name = name.rpartition(":")[0] or name
        if lower is None:
            return is_local(name)
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in lower)

    def is_ours(headers: Headers) -> bool:
        for name, value in headers:
            if name == b"host":
                return is_answered(value)
        return is_answered(b"")

    return is_ours


async def misdirected(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request that calls the server by another name."""
    await error_handlers.answer(errors.misdirected())(scope, receive, send)
