"""Receives a part of an upload: a form whose field `data` goes to the store while it arrives."""

from typing import Annotated, Final

from fastapi import Depends, Request

from tidemill.api import errors
from tidemill.api.dependencies import Dependencies
from tidemill.api.requests.reading import Parameters
from tidemill.api.uploads import form_reader
from tidemill.api.uploads.form_reader import FormBody
from tidemill.api.uploads.sink import Sink
from tidemill.api.view.quotas import Booking
from tidemill.schemas import ids
from tidemill.schemas.log.messages import PartRecord
from tidemill.schemas.resources.file import UploadPart

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
        ClientDisconnect: The client disconnected; nothing is left of it.
    """
    part_id = ids.new_part_id()
    key = f"uploads/{upload_id}/{part_id}"
    async with (
        form_reader.received(
            request, deps, project=booking.project, bytes_max=PART_BYTES_MAX, param=FIELD
        ) as fields,
        Sink(deps.store, key, bytes_max=PART_BYTES_MAX, param=FIELD) as sink,
    ):
        count = 0
        async for field in fields:
            if field.head.name != FIELD:
                continue
            count += 1
            if count > 1:
                raise errors.invalid(f"The form has more than one '{FIELD}'.", param=FIELD)
            async for data in field.data:
                await sink.put(data)
        if not count:
            raise errors.missing(FIELD)
        booking.bytes(sink.size)
        stored = await sink.commit()
    part = UploadPart(id=part_id, created_at=int(deps.clock()), upload_id=upload_id)
    return PartRecord(part=part, bytes=stored.bytes, key=key)
