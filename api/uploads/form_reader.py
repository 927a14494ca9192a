"""Reads large bodies and forms with a file from requests, within bounds of time, size and number."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, ClassVar, Final, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from tidemill.api import errors
from tidemill.api.dependencies import Dependencies
from tidemill.api.requests import reading
from tidemill.api.requests.parts import FULL, UNUSABLE, Part, schema_of
from tidemill.api.uploads.multipart import Event, Form, MultipartError, PartBegan
from tidemill.schemas.resources.error import ApiError

FORM_BYTES_MAX = 64 * 1024
"""Bytes of a form beside the file."""
SILENCE_SECONDS_MAX = 60.0
"""How long a client may send nothing."""
DRAIN_BYTES_MAX = 1 << 30
"""Many clients read an error only after they sent the whole body, so the api reads the rest up to here."""
DRAIN_SECONDS_MAX = 60.0
_LENGTH = re.compile(r"\d{1,18}\Z", re.ASCII)

F = TypeVar("F", bound=BaseModel)
BINARY: Final = {"type": "string", "format": "binary"}


class StreamedBody(Part):
    """A body that the route reads as it arrives."""

    errors: ClassVar[Mapping[int, str]] = {
        **UNUSABLE,
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        **FULL,
    }

    async def __call__(self, request: Request) -> Request:
        """Return the request."""
        return request


class FormBody(StreamedBody, Generic[F]):
    """A form with a file in the field `file` and other fields (`received`)."""

    def __init__(self, file: str, fields: type[F]) -> None:
        self.file = file
        self._fields = fields

    def read(self, fields: Mapping[str, str]) -> F:
        """Read the other fields; a fault is a 400 with the field's name."""
        return reading.form(self._fields, fields)

    def described(self) -> dict[str, Any]:
        """The schema of the form."""
        others = schema_of(self._fields)
        schema = {
            "type": "object",
            "required": [self.file, *others.get("required", ())],
            "properties": {self.file: BINARY, **others.get("properties", {})},
        }
        return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


FormPart = tuple[PartBegan, AsyncIterator[bytes]]
"""A part of a form: its head, and its bytes as they arrive. Bytes that are not read are skipped."""


@asynccontextmanager
async def received(
    request: Request, deps: Dependencies, *, project: str, bytes_max: int, param: str
) -> AsyncIterator[AsyncIterator[FormPart]]:
    """The parts of a form as they arrive; if the block fails, it reads the rest of the body.

    A `Content-Length` that does not fit a file of `bytes_max`, in the field `param`, is refused before the body is
    read; a chunked body is refused when it no longer fits.

    Raises:
        ApiError: The form is invalid, or does not arrive in time.
        ClientDisconnect: The client disconnected.
    """
    fault = errors.body_too_large(bytes_max, param=param)
    async with large_body(request, deps, project, bytes_max + FORM_BYTES_MAX, fault) as stream:
        events = _events(Form(request.headers.get("content-type")), stream)
        async with aclosing(events), aclosing(_parts(events)) as parts:
            yield parts


@asynccontextmanager
async def large_body(
    request: Request, deps: Dependencies, project: str, bytes_max: int, fault: ApiError
) -> AsyncIterator[AsyncIterator[bytes]]:
    """A body as it arrives, one of a bounded number at a time; if the block fails, it reads the rest of the body.

    Args:
        request: The request.
        deps: The dependencies of the app.
        project: The project of the caller.
        bytes_max: A larger `Content-Length` is refused before the body is read, and a chunked body when it exceeds
            this.
        fault: The error of a larger one.

    Raises:
        ApiError: It is too large, or does not arrive in time.
        ClientDisconnect: The client disconnected.
    """
    async with deps.gates.uploads.turn(project):
        stream = request.stream()
        try:
            if declared_bytes(request) > bytes_max:
                raise fault
            yield _bounded(stream, bytes_max, fault)
        except ApiError as error:
            if not await _drain(stream):
                error.headers["connection"] = "close"
            raise


def declared_bytes(request: Request) -> int:
    """The `Content-Length` of a request; 0 if there is no valid one."""
    match = _LENGTH.match(request.headers.get("content-length", ""))
    return int(match[0]) if match is not None else 0


async def _bounded(stream: AsyncIterator[bytes], bytes_max: int, fault: ApiError) -> AsyncIterator[bytes]:
    """A body; also bytes that its reader ignores count."""
    left = bytes_max
    async for chunk in stream:
        left -= len(chunk)
        if left < 0:
            raise fault
        yield chunk


async def _parts(events: AsyncIterator[Event]) -> AsyncGenerator[FormPart, None]:
    async for event in events:
        if isinstance(event, PartBegan):
            yield event, _until_end(events)


async def _until_end(events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    async for event in events:
        if not isinstance(event, bytes):
            return
        yield event


async def _events(form: Form, stream: AsyncIterator[bytes]) -> AsyncGenerator[Event, None]:
    while not form.is_whole:
        if not (chunk := await next_bytes(stream)):
            raise MultipartError("the multipart body ends before its closing boundary")
        for event in form.feed(chunk):
            yield event


async def next_bytes(stream: AsyncIterator[bytes]) -> bytes:
    """The next bytes of a body; none at its end.

    Raises:
        ApiError: 408, they do not arrive in time.
    """
    try:
        async with asyncio.timeout(SILENCE_SECONDS_MAX):
            return await anext(stream, b"")
    except TimeoutError as error:
        raise errors.timed_out() from error


async def _drain(stream: AsyncIterator[bytes]) -> bool:
    """Read the rest of a body; False if it exceeds `DRAIN_BYTES_MAX`."""
    left = DRAIN_BYTES_MAX
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DRAIN_SECONDS_MAX):
            async for chunk in stream:
                left -= len(chunk)
                if left < 0:
                    return False
            return True
    return False
