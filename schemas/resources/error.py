"""The error body of the OpenAI API, and the exception with one.

Exception
└── ApiError          answered with its status and body
└── DecodeError       a record on the log that cannot be read (schemas/log/codec.py)
└── NotFound          an object that the store does not hold (schemas/ports.py)
"""

from tidemill.schemas.bounds import Shape


class ErrorBody(Shape):
    """The error; all four keys are always present."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(Shape):
    """The body of an error answer."""

    error: ErrorBody


class ApiError(Exception):
    """An error answer to a request."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(message=message, type=kind, param=param, code=code)
        self.headers = headers or {}
