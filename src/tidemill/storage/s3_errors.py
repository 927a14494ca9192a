"""Errors of the S3 client as those of a store: missing, refused, or passing."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError

from tidemill.schemas.ports import NotFound

_MISSING: Final = frozenset({"404", "NoSuchKey", "NotFound"})
_RANGE_ERROR: Final = "InvalidRange"
_NO_UPLOAD: Final = "NoSuchUpload"
_PASSING: Final = frozenset({
    "ConditionalRequestConflict", "OperationAborted", "RequestTimeTooSkewed", "RequestTimeout",
    "RequestTimeoutException", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests",
})  # fmt: skip
"""Codes of refusals that a new attempt may not meet, whatever the status."""
CHANGED: Final = frozenset({"412", "PreconditionFailed"})
"""Codes of a request whose condition does not hold."""
_PASSING_STATUSES: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})


class Unavailable(OSError):
    """The server or the network failed; a new attempt may succeed."""


class NoUpload(Unavailable):
    """The server knows no such upload: it is complete, or was aborted."""


class Refused(OSError):
    """The server refuses the request."""

    def __init__(self, code: str) -> None:
        """Keep the server's code."""
        super().__init__(f"S3 answered {code}")
        self.code = code


class RangeError(OSError):
    """A range begins after the object's end."""


@contextmanager
def failures(key: str) -> Iterator[None]:
    """Raise errors of the client library as errors of `Store`."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MISSING:
            raise NotFound(key) from error
        if code == _RANGE_ERROR:
            raise RangeError(code) from error
        if code == _NO_UPLOAD:
            raise NoUpload(f"S3 answered {code}") from error
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        is_down = status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.NOT_IMPLEMENTED
        if is_down or status in _PASSING_STATUSES or code in _PASSING:
            raise Unavailable(f"S3 answered {code or status}") from error
        raise Refused(code or str(status)) from error
    except (BotoCoreError, aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(type(error).__name__) from error
