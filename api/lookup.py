"""Finds objects by id; waits a moment for one that another api process may just have created.

An object that the project does not have is an `ApiError` 404.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from tidemill.api import errors
from tidemill.api.view.view import View
from tidemill.schemas import ids
from tidemill.schemas.log.messages import FileRecord, KeyRecord, PartRecord, UploadRecord
from tidemill.schemas.resources.batch import Batch
from tidemill.schemas.resources.error import ApiError

SEEN_SECONDS_MAX = 1.0
"""How long to wait for an object that this process has not seen."""

T = TypeVar("T")


async def batch(view: View, project: str, batch_id: str) -> Batch:
    """A batch."""
    return Batch.model_validate_json(await batch_json(view, project, batch_id))


async def batch_json(view: View, project: str, batch_id: str, *, param: str | None = None) -> bytes:
    """A batch as JSON; `param` names the field of the request that has the id."""
    return await _awaited(
        view,
        batch_id,
        lambda: _batch(view, project, batch_id),
        may_come=lambda: ids.is_batch_id(batch_id) and not view.erasures.is_deleted(project, batch_id),
        absent=lambda: errors.no_batch(batch_id, param=param),
    )


async def file(view: View, project: str, file_id: str) -> FileRecord:
    """A file."""
    return await _awaited(
        view,
        file_id,
        lambda: view.file(project, file_id),
        # A deleted or expired file does not come back.
        may_come=lambda: ids.is_file_id(file_id) and not view.knows_file(project, file_id),
        absent=lambda: errors.no_file(file_id),
    )


async def upload(view: View, project: str, upload_id: str) -> UploadRecord:
    """An upload in parts."""
    return await _awaited(
        view,
        upload_id,
        lambda: view.uploads.upload(project, upload_id),
        may_come=lambda: ids.is_upload_id(upload_id),
        absent=lambda: errors.no_upload(upload_id),
    )


async def parts(view: View, upload_id: str, part_ids: Sequence[str]) -> list[PartRecord]:
    """Parts of an upload, in this order; a missing one is a 400."""
    known = dict(view.uploads.keys(upload_id))
    for part_id in part_ids:
        if part_id not in known:
            await _part(view, upload_id, part_id)
    found = view.uploads.parts(upload_id)
    if (gone := next((part_id for part_id in part_ids if part_id not in found), None)) is not None:
        raise errors.no_part(gone)
    return [found[part_id] for part_id in part_ids]


async def _part(view: View, upload_id: str, part_id: str) -> bool:
    return await _awaited(
        view,
        part_id,
        lambda: view.uploads.has_part(upload_id, part_id) or None,
        may_come=lambda: True,
        absent=lambda: errors.no_part(part_id),
    )


async def key(view: View, project: str | None, key_id: str) -> KeyRecord:
    """An API key of a project, or of any."""

    def find() -> KeyRecord | None:
        record = view.keyring.by_id(key_id)
        return record if record is not None and project in {None, record.key.project} else None

    return await _awaited(
        view,
        key_id,
        find,
        may_come=lambda: ids.is_listed_id(key_id) and view.keyring.by_id(key_id) is None,
        absent=lambda: errors.no_key_with(key_id),
    )


async def page(view: View, after: str | None, read: Callable[[], T]) -> T:
    """What `read` returns, which raises an `ApiError` if the view does not know the object `after`."""

    def look() -> T | None:
        try:
            return read()
        except ApiError:
            return None

    if after is not None and ids.is_listed_id(after):
        found = await view.changes.wait_for(after, look, seconds_max=SEEN_SECONDS_MAX)
        if found is not None:
            return found
    return read()


async def _awaited(
    view: View,
    object_id: str,
    find: Callable[[], T | None],
    *,
    may_come: Callable[[], bool],
    absent: Callable[[], ApiError],
) -> T:
    if (found := find()) is None and may_come():
        found = await view.changes.wait_for(object_id, find, seconds_max=SEEN_SECONDS_MAX)
    if found is None:
        raise absent()
    return found


def _batch(view: View, project: str, batch_id: str) -> bytes | None:
    if (found := view.batch(project, batch_id)) is not None:
        return found
    if view.erasures.is_deleted(project, batch_id):
        return None
    # A client can know the id of a claim only from an answer, so its command is in the log.
    claim = view.claims.first(project, batch_id)
    return None if claim is None else claim.command.batch.model_dump_json().encode()
