"""Ended batches with their files, as results writes them."""

from array import array
from collections.abc import Mapping
from typing import Any

from support.dependencies import NOW, batch_of

from tidemill.api.dependencies import Dependencies
from tidemill.schemas import ids
from tidemill.schemas.log.messages import BatchRecord, FileRecord
from tidemill.schemas.log.part import encode_index, index_key
from tidemill.schemas.resources.batch import Batch, Extras, FileReceipt, Receipt, RequestCounts, Status
from tidemill.schemas.resources.file import File


async def put_ended(
    deps: Dependencies,
    batch_id: str,
    output: Mapping[int, bytes],
    errors: Mapping[int, bytes],
    *,
    project: str = "p",
    rerun_of: str | None = None,
    endpoint: str = "/v1/embeddings",
) -> Batch:
    """Show a batch with these lines by their indices in the store and the view."""
    await _write(deps, project, batch_id, "output", output)
    await _write(deps, project, batch_id, "errors", errors)
    found = FileReceipt(lines=1, bytes=1, sha256="")
    lines = len(output) + len(errors)
    batch = batch_of(
        batch_id, endpoint=endpoint, status=Status.COMPLETED, completed_at=NOW,
        request_counts=RequestCounts(total=lines),
        tidemill=Extras(receipt=Receipt(lines=lines, output=found, errors=found), rerun_of=rerun_of),
    )  # fmt: skip
    return deps.view.put_batch(BatchRecord(project=project, batch=batch))


async def end(
    deps: Dependencies,
    batch_id: str,
    at: str,
    status: Status,
    texts: list[tuple[int, bool, bytes]],
    **fields: Any,
) -> None:
    """End a batch of `p` with these lines: index, whether it failed, text; `at` is the field of the time."""
    batch = Batch.model_validate_json(deps.view.batch("p", batch_id))
    receipts = {}
    for kind, is_error in (("output", False), ("errors", True)):
        if mine := {index: text for index, failed, text in texts if failed is is_error}:
            await _write(deps, "p", batch_id, kind, mine)
            receipts[kind] = FileReceipt(lines=len(mine), bytes=_size(mine), sha256="")
    if texts:
        fields["tidemill"] = Extras(receipt=Receipt(lines=len(texts), **receipts))
    changed = batch.model_copy(update={"status": status, at: NOW + 60, **fields})
    deps.view.put_batch(BatchRecord(project="p", batch=changed))


async def _write(deps: Dependencies, project: str, batch_id: str, kind: str, texts: Mapping[int, bytes]) -> None:
    file_id = ids.derived_file_id(batch_id, kind)
    file = File(id=file_id, bytes=_size(texts), created_at=NOW, filename="e", purpose="batch_output")
    record = FileRecord(project=project, file=file, key=f"files/{file_id}", sha256="")
    models, usage = (array("I", [0] * columns * len(texts)) for columns in (1, 4))
    columns = encode_index(array("I", texts), array("I", map(len, texts.values())), models, usage)
    await deps.store.write(record.key, _once(b"".join(texts.values())))
    await deps.store.write(index_key(record.key), _once(columns))
    deps.view.put_file(record, 1)


def _size(texts: Mapping[int, bytes]) -> int:
    return sum(map(len, texts.values()))


def errored(kind: str, message: str, request_id: str | None = None) -> dict:
    """The result of a request with an error of ours."""
    said = {"type": kind, "message": message}
    return {"type": "errored", "error": {"type": "error", "error": said, "request_id": request_id}}


async def _once(content: bytes):
    yield content
