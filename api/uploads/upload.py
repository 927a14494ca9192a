"""Receives an upload: a form whose file goes to the store while it arrives, and some small fields."""

from collections.abc import AsyncIterator
from typing import Annotated, Final

from fastapi import Depends, Request
from pydantic import BeforeValidator, Field, WithJsonSchema

from tidemill.api import errors
from tidemill.api.dependencies import Dependencies
from tidemill.api.requests import reading
from tidemill.api.requests.fields import Expiry, OneOf, Purpose
from tidemill.api.uploads import form_reader
from tidemill.api.uploads.form_reader import FormBody
from tidemill.api.uploads.multipart import MultipartError, PartBegan
from tidemill.api.uploads.sink import BATCH, Sink, life_of, new_file
from tidemill.api.view.quotas import Booking
from tidemill.schemas import ids
from tidemill.schemas.bounds import FILENAME_CHARS_MAX
from tidemill.schemas.log.messages import FileRecord
from tidemill.schemas.log.part import file_key
from tidemill.schemas.resources.file import EXPIRES_AFTER_SECONDS

FIELD_BYTES_MAX = 1024

_ANCHOR = "expires_after[anchor]"
_SECONDS = "expires_after[seconds]"
_LOW, _HIGH = EXPIRES_AFTER_SECONDS
_JSON = {
    "type": "string",
    "maxLength": reading.JSON_CHARS_MAX,
    "examples": ['{"anchor": "created_at", "seconds": 86400}'],
}


class FileFields(reading.Parameters):
    """The fields of an upload beside its file."""

    purpose: Purpose
    anchor: Annotated[str, OneOf(("created_at",))] | None = Field(None, alias=_ANCHOR)
    seconds: Annotated[int, Field(ge=_LOW, le=_HIGH), reading.WHOLE] | None = Field(None, alias=_SECONDS)
    expires_after: Annotated[Expiry, BeforeValidator(reading.json), WithJsonSchema(_JSON)] | None = None
    """Both as one JSON object."""

    @property
    def wanted_life(self) -> int | None:
        """How long the request wants the file to be kept, in seconds; None is the default of its purpose.

        Raises:
            ApiError: 400, one of the two fields is missing, or the request has both forms.
        """
        if self.expires_after is not None:
            if self.anchor is not None or self.seconds is not None:
                raise errors.invalid(
                    "'expires_after' is given twice.", param="expires_after", code="invalid_value"
                )
            return self.expires_after.seconds
        if (self.anchor is None) != (self.seconds is None):
            raise errors.missing(_ANCHOR if self.anchor is None else _SECONDS)
        return self.seconds


FILE: Final = "file"
FORM: Final = FormBody(FILE, FileFields)
FileUpload = Annotated[Request, Depends(FORM)]
"""A request with the form of a file."""


async def receive(request: Request, deps: Dependencies, booking: Booking) -> FileRecord:
    """Store an upload; the booking reserves room first for its declared size, then for the actual one.

    The returned record of the file is not yet on the log.

    Raises:
        ApiError: It is invalid or there is no room; nothing is left of it.
        ClientDisconnect: The client disconnected; nothing is left of it.
    """
    bytes_max, project = deps.settings.upload_bytes_max, booking.project
    file_id, filename = ids.new_file_id(project), None
    values: dict[str, str] = {}
    async with (
        form_reader.received(request, deps, project=project, bytes_max=bytes_max, param=FILE) as parts,
        Sink(deps.store, file_key(file_id), bytes_max=bytes_max, param=FILE) as sink,
    ):
        async for head, data in parts:
            if head.name != FILE:
                await _read_field(head.name, data, values)
                continue
            if filename is not None:
                raise errors.invalid("The form has more than one 'file'.", param=FILE)
            booking.reserve_bytes(max(0, form_reader.declared_bytes(request) - form_reader.FORM_BYTES_MAX))
            filename = _filename(head)
            await _read_file(data, values, sink)
        fields = FORM.read(values)
        life_seconds = life_of(deps.settings, fields.purpose, fields.wanted_life)
        if filename is None:
            raise errors.missing(FILE)
        _check_first_line(values, sink)
        booking.reserve_bytes(sink.size)
        stored = await sink.commit()
    file = new_file(file_id, filename, int(deps.clock()), purpose=fields.purpose, life_seconds=life_seconds)
    return stored.record(project, file)


async def _read_field(name: str, chunks: AsyncIterator[bytes], values: dict[str, str]) -> None:
    """Add a field; with the purpose, all fields so far are checked before the file is read."""
    value = b""
    async for data in chunks:
        value += data
        if len(value) > FIELD_BYTES_MAX:
            raise MultipartError(f"a field has more than {FIELD_BYTES_MAX} bytes")
    values[name] = value.decode(errors="replace")
    if name == "purpose":
        FORM.read(values)


async def _read_file(chunks: AsyncIterator[bytes], values: dict[str, str], sink: Sink) -> None:
    """Write the file; refuse an invalid first line early if the purpose came before (Node sends it last)."""
    async for data in chunks:
        is_first = not sink.first_line.is_done
        await sink.put(data)
        if is_first and sink.first_line.is_done:
            _check_first_line(values, sink)


def _filename(head: PartBegan) -> str:
    filename = head.filename or "upload"
    if (length := len(filename)) > FILENAME_CHARS_MAX:
        raise errors.too_long(FILE, FILENAME_CHARS_MAX, length)
    return filename


def _check_first_line(values: dict[str, str], sink: Sink) -> None:
    if values.get("purpose") == BATCH and (fault := sink.first_line.fault()) is not None:
        raise errors.invalid(fault)
