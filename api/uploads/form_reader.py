"""A form with a file in it, taken from a request: bounded in time, in size, and in how many there are at once."""

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
"""What a form may hold beside the file."""
SILENCE_SECONDS_MAX = 60.0
"""How long a client may send nothing."""
DRAIN_BYTES_MAX = 1 << 30
"""A client that is still sending learns of an error only once it is done, so the rest is read up to here."""
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


class Taker(Protocol[T_co]):
    """What takes the parts of a form as they arrive."""

    def begin(self, part: PartBegan) -> None:
        """A part begins."""
        ...

    async def data(self, data: bytes) -> None:
        """The part goes on."""
        ...

    def end(self) -> None:
        """The part is whole."""
        ...

    async def finish(self) -> T_co:
        """The form is whole: what comes of it."""
        ...

    async def discard(self) -> None:
        """Leave nothing, unless it is finished."""
        ...


async def receive(
    request: Request, deps: Dependencies, taker: Taker[T_co], *, project: str, bytes_max: int, param: str
) -> T_co:
    """Take a form.

    Args:
        request: The request.
        deps: The dependencies of the app.
        taker: What takes the parts.
        project: Whose it is.
        bytes_max: A body that says that its file is larger is refused before it is read.
        param: The name of the file's field.

    Raises:
        ApiError: It cannot be taken; the taker has discarded it.
        ClientDisconnect: It broke off; the taker has discarded it.
    """
    async with deps.uploads.turn(project):
        stream = request.stream()
        try:
            return await _receive(request, stream, taker, bytes_max=bytes_max, param=param)
        except ApiError as error:
            if not await _drain(stream):
                error.headers["connection"] = "close"
            raise


def declared_bytes(request: Request) -> int:
    """What a request says that its body has; 0 where it does not say, or nothing that could be read."""
    match = _LENGTH.match(request.headers.get("content-length", ""))
    return int(match[0]) if match is not None else 0


async def _receive(
    request: Request, stream: AsyncIterator[bytes], taker: Taker[T_co], *, bytes_max: int, param: str
) -> T_co:
    if declared_bytes(request) > bytes_max + FORM_BYTES_MAX:
        raise errors.body_too_large(bytes_max, param=param)
    try:
        await _read(Form(request.headers.get("content-type")), stream, taker)
        return await taker.finish()
    except MultipartError as error:
        raise errors.invalid(f"Could not read the upload: {error}.") from error
    finally:
        await taker.discard()


async def _read(form: Form, stream: AsyncIterator[bytes], taker: Taker[object]) -> None:
    while not form.is_whole:
        if not (chunk := await _next(stream)):
            raise MultipartError("the multipart body ends before its closing boundary")
        for event in form.feed(chunk):
            if isinstance(event, PartData):
                await taker.data(event.data)
            elif isinstance(event, PartBegan):
                taker.begin(event)
            else:
                taker.end()


async def _next(stream: AsyncIterator[bytes]) -> bytes:
    """The next bytes of a body; none at its end."""
    try:
        async with asyncio.timeout(SILENCE_SECONDS_MAX):
            return await anext(stream, b"")
    except TimeoutError as error:
        raise errors.silent() from error


async def _drain(stream: AsyncIterator[bytes]) -> bool:
    """Read the rest of a body; False where there is more of it than is read."""
    left = DRAIN_BYTES_MAX
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DRAIN_SECONDS_MAX):
            async for chunk in stream:
                left -= len(chunk)
                if left < 0:
                    return False
            return True
    return False
