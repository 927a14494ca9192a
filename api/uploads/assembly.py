"""Assembles an upload: copies its parts into one object, and hashes and checks them on the way."""

import asyncio
import hashlib
from collections.abc import Sequence

from tidemill.api import errors
from tidemill.api.dependencies import Dependencies, chunks_from_store
from tidemill.api.uploads.sink import BATCH, Sink, Stored, new_file
from tidemill.schemas import ids
from tidemill.schemas.log.messages import FileRecord, PartRecord, UploadRecord
from tidemill.schemas.log.part import file_key
from tidemill.schemas.ports import NotFound


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
            raise errors.invalid("The upload's parts are gone.", param="part_ids") from error
        if md5 is not None and digest.hexdigest() != md5:
            raise errors.invalid("The uploaded bytes have another MD5 than 'md5' says.", param="md5")
        if record.upload.purpose == BATCH and (fault := sink.first_line.fault()) is not None:
            raise errors.invalid(fault)
        return await sink.commit()
