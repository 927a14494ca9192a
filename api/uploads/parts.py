"""Uploads in parts: stores each part while it arrives, and assembles them into one file."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Annotated, Final

from fastapi import Depends, Request

from tidemill.api import errors
from tidemill.api.dependencies import Dependencies, chunks_from_store
from tidemill.api.requests.reading import Parameters
from tidemill.api.uploads import form_reader
from tidemill.api.uploads.form_reader import FormBody
from tidemill.api.uploads.sink import BATCH, Sink, Stored, new_file
from tidemill.api.view.quotas import Booking
from tidemill.schemas import ids
from tidemill.schemas.log.messages import FileRecord, PartRecord, UploadRecord
from tidemill.schemas.log.part import file_key
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.file import UploadPart

PART_BYTES_MAX = 64 << 20
FORM: Final = FormBody("data", Parameters)
FIELD: Final = FORM.file
PartUpload = Annotated[Request, Depends(FORM)]
"""A request with the form of a part."""


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
        Sink(deps.store, key, bytes_max=PART_BYTES_MAX, param=FIELD, kind="part") as sink,
    ):
        count = 0
        async for head, chunks in fields:
            if head.name != FIELD:
                continue
            count += 1
            if count > 1:
                raise errors.invalid(f"The form has more than one '{FIELD}'.", param=FIELD)
            async for data in chunks:
                await sink.put(data)
        if not count:
            raise errors.missing(FIELD)
        booking.reserve_bytes(sink.size)
        stored = await sink.commit()
    part = UploadPart(id=part_id, created_at=int(deps.clock()), upload_id=upload_id)
    return PartRecord(part=part, bytes=stored.bytes, key=key)


async def assemble(
    deps: Dependencies, record: UploadRecord, parts: Sequence[PartRecord], md5: str | None
) -> FileRecord:
    """Assemble an upload of its parts in order; the same parts always become the same file.

    Without `md5`, hexadecimal, the digest is not checked. The returned record is not yet on the log.

    Raises:
        ApiError: 400, it is not as declared; 503, the store does not answer. Nothing is left of it.
    """
    upload = record.upload
    derived = ids.derived_file_id(upload.id, "/".join(part.part.id for part in parts))
    file_id = ids.owned_file_id(derived, record.project)
    async with deps.gates.uploads.turn(record.project):
        stored = await _copied(deps, file_key(file_id), record, parts, md5)
    file = new_file(
        file_id, upload.filename, int(deps.clock()), purpose=upload.purpose, life_seconds=record.life_seconds
    )
    return stored.record(record.project, file)


async def _copied(
    deps: Dependencies, key: str, record: UploadRecord, parts: Sequence[PartRecord], md5: str | None
) -> Stored:
    digest = hashlib.md5(usedforsecurity=False)
    async with Sink(deps.store, key, bytes_max=record.upload.bytes, param="part_ids") as sink:
        try:
            for part in parts:
                async for chunk in chunks_from_store(deps.store.read(part.key)):
                    await sink.put(chunk)
                    if md5 is not None:
                        await asyncio.to_thread(digest.update, chunk)
        except NotFound as error:
            # Another process cancelled or completed the upload, and deleted its parts.
            raise errors.PartsMissing("The upload's parts are gone.") from error
        if md5 is not None and digest.hexdigest() != md5:
            raise errors.invalid("The uploaded bytes have another MD5 than 'md5' says.", param="md5")
        if record.upload.purpose == BATCH and (fault := sink.first_line.fault()) is not None:
            raise errors.invalid(fault)
        return await sink.commit()
