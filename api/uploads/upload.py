"""Receives an upload: a form whose file goes to the store while it arrives, and some small fields."""

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
from tidemill.api.uploads.sink import Sink
from tidemill.api.view.quotas import Booking
from tidemill.schemas import ids
from tidemill.schemas.bounds import FILENAME_CHARS_MAX
from tidemill.schemas.log.messages import FileRecord
from tidemill.schemas.resources.file import BATCH_FILE_LIFE_SECONDS, EXPIRES_AFTER_SECONDS, File

FIELD_BYTES_MAX = 1024

BATCH = "batch"
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
    def life_seconds(self) -> int | None:
        """How long the file is kept; None is forever.

        Raises:
            ApiError: 400, one of the two is there without the other, or both are there twice.
        """
        if self.expires_after is not None:
            if self.anchor is not None or self.seconds is not None:
                raise errors.invalid(
                    "'expires_after' is given twice.", param="expires_after", code="invalid_value"
                )
            return self.expires_after.seconds
        if (self.anchor is None) != (self.seconds is None):
            raise errors.missing(_ANCHOR if self.anchor is None else _SECONDS)
        return self.seconds or (BATCH_FILE_LIFE_SECONDS if self.purpose == BATCH else None)


FORM: Final = FormBody("file", FileFields)
FileForm = Annotated[Request, Depends(FORM)]


async def receive(request: Request, deps: Dependencies, project: str, booking: Booking) -> FileRecord:
    """Store an upload.

    Args:
        request: The request.
        deps: The dependencies of the app.
        project: The project of the file.
        booking: Reserves room: first for the declared size, then for the actual one.

    Returns:
        The record of the new file, which is not yet on the log.

    Raises:
        ApiError: It is invalid or there is no room; nothing is left of it.
        ClientDisconnect: It broke off; nothing is left of it.
    """
    declared = max(0, form_reader.declared_bytes(request) - form_reader.FORM_BYTES_MAX)
    upload = _Upload(deps, project, booking, declared)
    return await form_reader.receive(
        request, deps, upload, project=project, bytes_max=deps.settings.upload_bytes_max, param="file"
    )


class _Upload:
    """Consumes the form of an upload."""

    def __init__(self, deps: Dependencies, project: str, booking: Booking, declared: int) -> None:
        self._deps = deps
        self._booking = booking
        self._declared = declared
        """Least bytes of the file, by the `Content-Length`."""
        self._project = project
        self._id = ids.new_file_id()
        self._key = f"files/{self._id}"
        self._fields: dict[str, str] = {}
        self._name = ""
        self._value = bytearray()
        self._filename = ""
        self._sink: Sink | None = None
        self._stored = False

    def begin(self, part: PartBegan) -> None:
        """A part begins."""
        self._name = part.name
        if part.name != "file":
            return
        if self._sink is not None:
            raise errors.invalid("The form has more than one 'file'.", param="file")
        self._booking.bytes(self._declared)
        self._filename = part.filename or "upload"
        if (length := len(self._filename)) > FILENAME_CHARS_MAX:
            raise errors.too_long("file", FILENAME_CHARS_MAX, length)
        self._sink = Sink(
            self._deps.store, self._key, bytes_max=self._deps.settings.upload_bytes_max, param="file"
        )

    async def data(self, data: bytes) -> None:
        """The part goes on."""
        if self._name != "file":
            if len(self._value) + len(data) > FIELD_BYTES_MAX:
                raise MultipartError(f"a field has more than {FIELD_BYTES_MAX} bytes")
            self._value += data
            return
        assert self._sink is not None
        looking = not self._sink.first_line.is_done
        await self._sink.put(data)
        # Node sends the purpose last; if it is known already, a wrong file is refused early.
        if looking and self._sink.first_line.is_done:
            self._check_first_line(self._sink)

    def end(self) -> None:
        """The part is complete."""
        if self._name != "file":
            self._fields[self._name] = self._value.decode(errors="replace")
            self._value.clear()
            if self._name == "purpose":
                self._checked()

    async def finish(self) -> FileRecord:
        """The form is complete."""
        fields = self._checked()
        life_seconds = fields.life_seconds
        if self._sink is None:
            raise errors.missing("file")
        self._check_first_line(self._sink)
        self._booking.bytes(self._sink.size)
        stored = await self._sink.commit()
        self._stored = True
        created_at = int(self._deps.clock())
        file = File(
            id=self._id,
            bytes=stored.bytes,
            created_at=created_at,
            expires_at=None if life_seconds is None else created_at + life_seconds,
            filename=self._filename,
            purpose=fields.purpose,
        )
        return FileRecord(
            project=self._project, file=file, key=self._key, sha256=stored.sha256, lines=stored.lines
        )

    async def discard(self) -> None:
        """Remove the bytes, unless the form is finished."""
        if self._sink is not None and not self._stored:
            await self._sink.discard()

    def _checked(self) -> FileFields:
        return FORM.read(self._fields)

    def _check_first_line(self, sink: Sink) -> None:
        purpose = self._fields.get("purpose")
        if purpose == BATCH and (fault := sink.first_line.fault()) is not None:
            raise errors.invalid(fault)
