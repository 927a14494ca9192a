"""The routes of uploads in parts."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Final
from weakref import WeakValueDictionary

from fastapi import APIRouter, Depends, Request, Response

from tidemill.api import errors, lookup
from tidemill.api.batches import file_removal
from tidemill.api.dependencies import Caller, Dependencies, Deps, StoringBody, from_store, json
from tidemill.api.openapi import Route
from tidemill.api.requests.bodies import Completion, NewUpload
from tidemill.api.requests.fields import UploadId
from tidemill.api.uploads import parts
from tidemill.api.uploads.sink import life_of
from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas import ids
from tidemill.schemas.bounds import UPLOAD_PARTS_MAX
from tidemill.schemas.log import topics
from tidemill.schemas.log.messages import FileRecord, PartRecord, UploadRecord
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.resources.error import ApiError
from tidemill.schemas.resources.file import UPLOAD_LIFE_SECONDS, Upload, UploadPart

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], route_class=Route)

_endings: Final[WeakValueDictionary[str, asyncio.Lock]] = WeakValueDictionary()
"""Locks that serialise completions of an upload: one must not delete the file that another is publishing."""


@router.post("", response_model=Upload)
async def create(
    deps: Deps, caller: Caller, body: Annotated[NewUpload, Depends(StoringBody(NewUpload))]
) -> Response:
    """Create an upload; it accepts parts for an hour."""
    with deps.booking(caller.project) as booking:
        # Checked now, reserved as the parts arrive.
        booking.reserve_bytes(body.bytes)
        booking.reserve_upload()
        now = int(deps.clock())
        upload = Upload(
            id=ids.new_upload_id(),
            bytes=body.bytes,
            created_at=now,
            expires_at=now + UPLOAD_LIFE_SECONDS,
            filename=body.filename,
            purpose=body.purpose,
        )
        wanted = None if body.expires_after is None else body.expires_after.seconds
        life_seconds = life_of(deps.settings, body.purpose, wanted)
        record = UploadRecord(project=caller.project, upload=upload, life_seconds=life_seconds)
        return await _put(deps, record)


@router.post("/{upload_id}/parts", response_model=UploadPart)
async def add(deps: Deps, caller: Caller, upload_id: UploadId, request: parts.PartUpload) -> Response:
    """Add a part; parts may arrive in any order, also in parallel."""
    record = _pending(await lookup.upload(deps.view, caller.project, upload_id))
    count, size = deps.view.uploads.arrived(upload_id)
    if count >= UPLOAD_PARTS_MAX:
        raise errors.array_too_long("data", UPLOAD_PARTS_MAX, count + 1)
    # A retry after a lost answer is another part, so there may be more bytes than declared.
    if size > 2 * record.upload.bytes:
        raise errors.invalid("The upload's parts have more than twice the bytes that it declared.", param="data")
    with deps.booking(caller.project) as booking:
        taken = await parts.receive(request, deps, upload_id, booking)
        try:
            _pending(await lookup.upload(deps.view, caller.project, upload_id))
        except ApiError:
            await _discard(deps, taken.key)
            raise
        await deps.publisher.upload(taken)
    return json(taken.part)


@router.post("/{upload_id}/complete", response_model=Upload)
async def complete(
    deps: Deps, caller: Caller, upload_id: UploadId, body: Annotated[Completion, Depends(StoringBody(Completion))]
) -> Response:
    """Complete an upload with its parts in order; a repetition gets the same answer."""
    part_ids = tuple(body.part_ids)
    record = await lookup.upload(deps.view, caller.project, upload_id)
    if _is_completed(record, part_ids):
        return json(record.upload)
    _pending(record)
    file_removal.check_store(deps)
    try:
        found = await _parts(deps, record, part_ids)
        made = await parts.assemble(deps, record, found, body.md5)
    except ApiError as error:
        # A concurrent repetition, perhaps of another process, may have completed it and deleted its parts.
        if isinstance(error, errors.PartsMissing):
            with suppress(LogUnavailable):
                await deps.reading.catch_up(topics.UPLOADS.name)
        now = deps.view.uploads.upload(caller.project, upload_id)
        if now is not None and _is_completed(now, part_ids):
            return json(now.upload)
        if now is not None and now.upload.status != "expired":
            _pending(now)
        raise
    async with _endings.setdefault(upload_id, asyncio.Lock()):
        answer = await _completed(deps, made, upload_id, part_ids)
    await _remove_parts(deps, upload_id)
    return answer


@router.post("/{upload_id}/cancel", response_model=Upload, responses={400: {"description": "The upload is over."}})
async def cancel(request: Request, deps: Deps, caller: Caller, upload_id: UploadId) -> Response:
    """Cancel an upload; a body is ignored."""
    record = await lookup.upload(deps.view, caller.project, upload_id)
    if record.upload.status == "cancelled":
        return json(record.upload)
    upload = _pending(record).upload.model_copy(update={"status": "cancelled"})
    await deps.trail.record(request, caller, Action.UPLOAD_CANCEL, upload_id)
    answer = await _put(deps, record.model_copy(update={"upload": upload}))
    await _remove_parts(deps, upload_id)
    return answer


async def _remove_parts(deps: Dependencies, upload_id: str) -> None:
    """Delete the parts of an upload that is over, since they count against the quota until then."""
    # Without success a sweep deletes them.
    with suppress(LogUnavailable):
        await file_removal.remove_parts(deps, upload_id)


def _pending(record: UploadRecord) -> UploadRecord:
    if (status := record.upload.status) != "pending":
        raise errors.invalid(f"The upload '{record.upload.id}' is not pending: its status is '{status}'.")
    return record


def _is_completed(record: UploadRecord, part_ids: tuple[str, ...]) -> bool:
    return record.upload.status == "completed" and record.part_ids == part_ids


async def _completed(deps: Dependencies, made: FileRecord, upload_id: str, part_ids: tuple[str, ...]) -> Response:
    """Complete an upload with its file, unless it ended while the file was made."""
    record = await lookup.upload(deps.view, made.project, upload_id)
    if _is_completed(record, part_ids):
        return json(record.upload)
    if record.upload.status != "expired":
        # Its hour may end while it is assembled; any other end is final.
        await _check_pending(deps, record, made)
    await deps.publisher.file(made)
    upload = record.upload.model_copy(update={"status": "completed", "file": made.file})
    return await _put(deps, record.model_copy(update={"upload": upload, "part_ids": part_ids}))


async def _check_pending(deps: Dependencies, record: UploadRecord, made: FileRecord) -> None:
    """Raise 400 and delete the file, which no record has, if the upload ended while it was made."""
    try:
        _pending(record)
    except ApiError:
        winner = record.upload.file
        if (winner is None or winner.id != made.file.id) and deps.view.file(record.project, made.file.id) is None:
            await _discard(deps, made.key)
        raise


async def _discard(deps: Dependencies, key: str) -> None:
    """Delete an object that no record names; if the store fails, it is an orphan and deleted later."""
    with suppress(ApiError):
        await from_store(deps.store.delete(key))


async def _parts(deps: Dependencies, record: UploadRecord, part_ids: Sequence[str]) -> list[PartRecord]:
    """The parts in the requested order, checked against the declared size.

    Raises:
        ApiError: 400, one is missing, or they do not add up.
    """
    found = await lookup.parts(deps.view, record.upload.id, part_ids)
    size = sum(piece.bytes for piece in found)
    if size != record.upload.bytes:
        raise errors.invalid(
            f"The parts have {size} bytes in all, but the upload declared {record.upload.bytes}.", param="part_ids"
        )
    return found


async def _put(deps: Dependencies, record: UploadRecord) -> Response:
    await deps.publisher.upload(record)
    return json(record.upload)
