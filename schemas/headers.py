"""HTTP headers of a client that go with each call of its batch: their names, bounds and form in a record.

The settings list the names that may be forwarded. A record has them as the lines of an HTTP request.
"""

import re
from collections.abc import Mapping
from typing import Final

from tidemill.schemas.bounds import FORWARDED_HEADERS_MAX, METADATA_VALUE_CHARS_MAX

VALUE_CHARS_MAX: Final = METADATA_VALUE_CHARS_MAX
LINES_BYTES_MAX: Final = 2048
"""Bytes of all header lines of one batch: they are in each of its records of requests."""

OWN: Final = frozenset({
    "host", "connection", "transfer-encoding", "accept", "accept-encoding", "authorization", "x-request-id",
    "expect", "te", "trailer", "upgrade", "content-type", "content-length", "traceparent",
})  # fmt: skip
"""Headers of a call that Tidemill sets itself, or that would change how a request is read."""
_OF_ONE_REQUEST: Final = frozenset({
    "keep-alive", "cookie", "api-key", "x-api-key", "user-agent", "idempotency-key", "forwarded", "via", "range",
})  # fmt: skip
"""Headers that hold a secret of the client, or that mean one request and one connection. Source: RFC 9110."""
_PREFIXES: Final = ("content-", "proxy-", "if-", "x-forwarded-", "sec-", "access-control-")

_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}\Z")
_VALUE: Final = re.compile(rf"[!-~](?:[ -~]{{0,{VALUE_CHARS_MAX - 2}}}[!-~])?\Z")


def is_name(text: str) -> bool:
    """Whether this can be the name of a header."""
    return _NAME.match(text) is not None


def is_forwardable(name: str) -> bool:
    """Whether a client's header of this name, in lower case, may go to servers."""
    if name in OWN or name in _OF_ONE_REQUEST or name.startswith(_PREFIXES):
        return False
    return is_name(name) and name == name.lower()


def is_value(text: str) -> bool:
    """Whether this is a value that may be forwarded: printable ASCII, within the bound."""
    return _VALUE.match(text) is not None


def lines(headers: Mapping[str, str]) -> bytes:
    """The headers as lines of an HTTP request, each with its line end."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("ascii")


def parsed(text: bytes) -> dict[str, str]:
    """The headers of a record, from their lines.

    Raises:
        ValueError: They are not headers that may be forwarded, in the form that `lines` writes.
    """
    rows = text.decode("ascii").split("\r\n")
    found = {name: value for name, _, value in (row.partition(": ") for row in rows[:-1])}
    is_whole = len(text) <= LINES_BYTES_MAX and 0 < len(found) <= FORWARDED_HEADERS_MAX and lines(found) == text
    if not (is_whole and all(map(is_forwardable, found)) and all(map(is_value, found.values()))):
        raise ValueError("the headers of calls are malformed")
    return found
