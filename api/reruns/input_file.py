"""Writes the input file of a rerun or a replay."""

from collections.abc import AsyncIterator
from typing import Final

import msgspec

from tidemill.api.dependencies import Dependencies
from tidemill.api.uploads.sink import Sink
from tidemill.api.view.quotas import Booking
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import FileRecord
from tidemill.schemas.log.part import file_key
from tidemill.schemas.resources.file import BATCH_FILE_LIFE_SECONDS, File

BATCH: Final = "batch"

_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()


async def write(
    deps: Dependencies, booking: Booking, file: File, project: str, chunks: AsyncIterator[bytes]
) -> FileRecord:
    """Write an input file, and show it when the log has its record.

    Args:
        deps: The dependencies of the app.
        booking: Reserves room for its bytes.
        file: Its object; see `blank`.
        project: Its project.
        chunks: Whole lines, each with its newline.

    Raises:
        ApiError: 413, it is larger than any upload may be; 429, the project has no room; 503, the store does not
            answer. Nothing is left of it.
        LogUnavailable: The log does not answer. The record may have landed, so the bytes stay.
    """
    async with deps.uploads.turn(project):
        key = file_key(file.id)
        sink = Sink(deps.store, key, bytes_max=deps.settings.upload_bytes_max, param="lines")
        is_stored = False
        try:
            async for chunk in chunks:
                await sink.put(chunk)
            booking.bytes(sink.size)
            stored = await sink.commit()
            is_stored = True
        finally:
            if not is_stored:
                await sink.discard()
    record = FileRecord(
        project=project,
        file=file.model_copy(update={"bytes": stored.bytes}),
        key=key,
        sha256=stored.sha256,
        lines=stored.lines,
    )
    offset = await deps.log.send(topics.FILES.name, file.id, codec.encode(record), headers=[])
    deps.view.put_file(record, offset)
    return record


def blank(file_id: str, filename: str, now: int) -> File:
    """An input file without bytes, kept as long as an uploaded one."""
    return File(
        id=file_id,
        bytes=0,
        created_at=now,
        expires_at=now + BATCH_FILE_LIFE_SECONDS,
        filename=filename,
        purpose=BATCH,
    )


def recast(line: bytes, *, model: str | None = None, custom_id: str | None = None) -> bytes:
    """Rewrite a line with another model or `custom_id`; None keeps what it has.

    This is the one place of Tidemill where a line is written anew. Only its outer object, and that of its body
    where the model changes, are taken apart: every other value stays the JSON text that the user wrote, so a
    number keeps its digits and a string its escapes. What is lost is whitespace between the fields.

    A line that is no such object is returned as it is: it is for ingest to say what is wrong with it.
    """
    if model is None and custom_id is None:
        return line
    try:
        fields = _objects.decode(line)
        if custom_id is not None:
            fields["custom_id"] = msgspec.Raw(_encoder.encode(custom_id))
        if model is not None:
            body = _objects.decode(fields["body"])
            body["model"] = msgspec.Raw(_encoder.encode(model))
            fields["body"] = msgspec.Raw(_encoder.encode(body))
    except (msgspec.MsgspecError, KeyError, UnicodeError):
        return line
    return _encoder.encode(fields)
