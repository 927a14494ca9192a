"""Writes the input file of a rerun or a replay."""

from collections.abc import AsyncIterator

import msgspec

from tidemill.api.dependencies import Dependencies
from tidemill.api.uploads.sink import Sink, new_file
from tidemill.api.view.quotas import Booking
from tidemill.schemas import UNREADABLE
from tidemill.schemas.log.messages import FileRecord
from tidemill.schemas.log.part import file_key

_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()


async def write(
    deps: Dependencies, booking: Booking, file_id: str, filename: str, chunks: AsyncIterator[bytes]
) -> FileRecord:
    """Write an input file of whole lines, each with its newline, and show it when the log has its record.

    Raises:
        ApiError: 413, it is larger than any upload may be; 429, the project has no room; 503, the store does not
            answer. Nothing is left of it.
        LogUnavailable: The log does not answer. The record may be in the log anyway, so the bytes stay.
    """
    bytes_max = deps.settings.upload_bytes_max
    async with (
        deps.gates.uploads.turn(booking.project),
        Sink(deps.store, file_key(file_id), bytes_max=bytes_max, param="lines") as sink,
    ):
        async for chunk in chunks:
            await sink.put(chunk)
        booking.reserve_bytes(sink.size)
        stored = await sink.commit()
    file = new_file(file_id, filename, int(deps.clock()), life_seconds=deps.settings.input_life_seconds)
    record = stored.record(booking.project, file)
    await deps.publisher.file(record)
    return record


def rewrite_line(line: bytes, *, model: str | None = None, custom_id: str | None = None) -> bytes:
    """Rewrite a line with another model or `custom_id`; None keeps what it has.

    Nothing else in Tidemill rewrites lines. Only the outer object is decoded, and that of the body if the model
    changes: every other value keeps the JSON text that the user wrote, so a number keeps its digits and a string
    its escapes. Only whitespace between the fields is lost. A line that is not an object is returned unchanged;
    ingest reports its fault.
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
    except (KeyError, *UNREADABLE):
        return line
    return _encoder.encode(fields)
