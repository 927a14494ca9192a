"""Receives a part of an upload: a form whose field `data` goes to the store while it arrives."""

from typing import Annotated, Final

from fastapi import Depends, Request

from tidemill.api import errors
from tidemill.api.dependencies import Dependencies
from tidemill.api.requests.reading import Parameters
from tidemill.api.uploads import form_reader
from tidemill.api.uploads.form_reader import FormBody
from tidemill.api.uploads.multipart import PartBegan
from tidemill.api.uploads.sink import Sink
from tidemill.api.view.quotas import Booking
from tidemill.schemas import ids
from tidemill.schemas.log.messages import PartRecord
from tidemill.schemas.resources.upload import UploadPart

PART_BYTES_MAX = 64 << 20
FORM: Final = FormBody("data", Parameters)
FIELD: Final = FORM.file
PartForm = Annotated[Request, Depends(FORM)]


async def receive(request: Request, deps: Dependencies, upload_id: str, booking: Booking) -> PartRecord:
    """Store a part; its room is reserved when its size is known, before the store keeps it.

    Returns:
        Its record, which is not yet on the log.

    Raises:
        ApiError: It is invalid or there is no room; nothing is left of it.
        ClientDisconnect: It broke off; nothing is left of it.
    """
    consumer = _Part(deps, upload_id, booking)
    return await form_reader.receive(
        request, deps, consumer, project=booking.project, bytes_max=PART_BYTES_MAX, param=FIELD
    )


class _Part:
    """Consumes the form of a part."""

    def __init__(self, deps: Dependencies, upload_id: str, booking: Booking) -> None:
        self._deps = deps
        self._booking = booking
        self._upload_id = upload_id
        self._id = ids.new_part_id()
        self._key = f"uploads/{upload_id}/{self._id}"
        self._is_data = False
        self._sink: Sink | None = None
        self._stored = False

    def begin(self, part: PartBegan) -> None:
        """A field begins; other fields are ignored."""
        self._is_data = part.name == FIELD
        if not self._is_data:
            return
        if self._sink is not None:
            raise errors.invalid(f"The form has more than one '{FIELD}'.", param=FIELD)
        self._sink = Sink(self._deps.store, self._key, bytes_max=PART_BYTES_MAX, param=FIELD)

    async def data(self, data: bytes) -> None:
        """The field goes on."""
        if self._is_data and self._sink is not None:
            await self._sink.put(data)

    def end(self) -> None:
        """The field is complete."""

    async def finish(self) -> PartRecord:
        """The form is complete."""
        if self._sink is None:
            raise errors.missing(FIELD)
        self._booking.bytes(self._sink.size)
        stored = await self._sink.commit()
        self._stored = True
        part = UploadPart(id=self._id, created_at=int(self._deps.clock()), upload_id=self._upload_id)
        return PartRecord(part=part, bytes=stored.bytes, key=self._key)

    async def discard(self) -> None:
        """Remove the bytes, unless the form is finished."""
        if self._sink is not None and not self._stored:
            await self._sink.discard()
