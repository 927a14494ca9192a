"""Reads forms with a file from requests, within bounds of time, size and number."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from tidemill.api import errors
from tidemill.api.dependencies import Dependencies
from tidemill.api.requests import reading
from tidemill.api.requests.parts import UNUSABLE, Part, schema_of
from tidemill.api.uploads.multipart import Form, MultipartError, PartBegan, PartData
from tidemill.schemas.resources.error import ApiError

FORM_BYTES_MAX = 64 * 1024
"""Bytes of a form beside the file."""
SILENCE_SECONDS_MAX = 60.0
"""How long a client may send nothing."""
DRAIN_BYTES_MAX = 1 << 30
"""Many clients read an error only after they sent the whole body, so the api reads the rest up to here."""
DRAIN_SECONDS_MAX = 60.0
_LENGTH = re.compile(r"\d{1,18}\Z", re.ASCII)

T_co = TypeVar("T_co", covariant=True)
F = TypeVar("F", bound=BaseModel)
BINARY: Final = {"type": "string", "format": "binary"}


class FormBody(Part, Generic[F]):
    """A form with a file in it; the route reads it while it arrives (see `receive`).

    Args:
        file: The name of the file's field.
        fields: The other fields.
    """

    errors: ClassVar[Mapping[int, str]] = {
        **UNUSABLE,
        408: "The body did not arrive in time.",
        413: "The body is too large.",
    }

    def __init__(self, file: str, fields: type[F]) -> None:
        self.file = file
        self._fields = fields

    async def __call__(self, request: Request) -> Request:
        """The request, of which nothing is read yet."""
        return request

    def read(self, fields: Mapping[str, str]) -> F:
        """Read the other fields.

        Raises:
            ApiError: 400 with the field's name.
        """
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


class FormConsumer(Protocol[T_co]):
    """Consumes the parts of a form as they arrive."""

    def begin(self, part: PartBegan) -> None:
        """A part begins."""
        ...

    async def data(self, data: bytes) -> None:
        """The part goes on."""
        ...

    def end(self) -> None:
        """The part is complete."""
        ...

    async def finish(self) -> T_co:
        """The form is complete; returns its result."""
        ...

    async def discard(self) -> None:
        """Remove everything, unless the form is finished."""
        ...


async def receive(
    request: Request, deps: Dependencies, consumer: FormConsumer[T_co], *, project: str, bytes_max: int, param: str
) -> T_co:
    """Read a form.

    Args:
        request: The request.
        deps: The dependencies of the app.
        consumer: Consumes the parts.
        project: Whose it is.
        bytes_max: A larger `Content-Length` is refused before the body is read.
        param: The name of the file's field.

    Raises:
        ApiError: It is invalid; the consumer has discarded it.
        ClientDisconnect: It broke off; the consumer has discarded it.
    """
    async with deps.uploads.turn(project):
        stream = request.stream()
        try:
            return await _receive(request, stream, consumer, bytes_max=bytes_max, param=param)
        except ApiError as error:
            if not await _drain(stream):
                error.headers["connection"] = "close"
            raise


def declared_bytes(request: Request) -> int:
    """The `Content-Length` of a request; 0 if there is no valid one."""
    match = _LENGTH.match(request.headers.get("content-length", ""))
    return int(match[0]) if match is not None else 0


async def _receive(
    request: Request, stream: AsyncIterator[bytes], consumer: FormConsumer[T_co], *, bytes_max: int, param: str
) -> T_co:
    if declared_bytes(request) > bytes_max + FORM_BYTES_MAX:
        raise errors.body_too_large(bytes_max, param=param)
    try:
        await _read(Form(request.headers.get("content-type")), stream, consumer)
        return await consumer.finish()
    except MultipartError as error:
        raise errors.invalid(f"Could not read the upload: {error}.") from error
    finally:
        await consumer.discard()


async def _read(form: Form, stream: AsyncIterator[bytes], consumer: FormConsumer[object]) -> None:
    while not form.is_whole:
        if not (chunk := await _next(stream)):
            raise MultipartError("the multipart body ends before its closing boundary")
        for event in form.feed(chunk):
            if isinstance(event, PartData):
                await consumer.data(event.data)
            elif isinstance(event, PartBegan):
                consumer.begin(event)
            else:
                consumer.end()


async def _next(stream: AsyncIterator[bytes]) -> bytes:
    """The next bytes of a body; none at its end."""
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
