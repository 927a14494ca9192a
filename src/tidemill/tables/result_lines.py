"""Result lines as Parquet: a row for each line, in row groups of some MiB, in bounded memory."""

import asyncio
import io
from array import array
from collections.abc import AsyncIterator, Iterable
from itertools import accumulate
from typing import Any, Final, cast

import msgspec
import pyarrow as pa

from tidemill.schemas import UNREADABLE
from tidemill.schemas.endpoints import TEXTS, texts
from tidemill.schemas.jsonl import server_error
from tidemill.schemas.jsonl.lines import Splitter
from tidemill.tables import RowError
from tidemill.tables.replies import FLOAT_BYTES, Error, Reply, failures, result_of
from tidemill.tables.sinks import ParquetSink

BATCH_BYTES: Final = 2 << 20
"""Bytes of lines that become rows at a time."""
_EMBEDDING: Final = pa.field("embedding", pa.list_(pa.float32()))
SCHEMA: Final = pa.schema([
    pa.field("custom_id", pa.string()),
    pa.field("status_code", pa.int32()),
    pa.field("model", pa.string()),
    pa.field("answer", pa.string()),
    _EMBEDDING,
    pa.field("body", pa.string()),
    pa.field("input_tokens", pa.int64()),
    pa.field("output_tokens", pa.int64()),
    pa.field("error_code", pa.string()),
    pa.field("error_message", pa.string()),
    pa.field("request_id", pa.string()),
    pa.field("attempts", pa.int32()),
    pa.field("server", pa.string()),
    pa.field("copy_of", pa.string()),
])  # fmt: skip
"""The columns, the same for output and errors of every endpoint. `body` is the reply as JSON; it is null if the
reply has one embedding as a list of numbers, which `embedding` then has. An embedding in base64 is taken for
float32 with the low byte first; if the request asked for other numbers, `body` has what came."""
_ANSWERS: Final = (
    *TEXTS.values(),
    ("choices", "message", "refusal"),
    ("choices", "message", "audio", "transcript"),
    ("output", "content", "refusal"),
    ("text",),
)
"""Where an answer may be in words, the best place first; the last one is that of transcriptions."""
_NAMES: Final = [field.name for field in SCHEMA if field != _EMBEDDING]


class _Body(msgspec.Struct, frozen=True):
    model: str | None = None
    data: list[msgspec.Raw] = []


_bodies: Final = msgspec.json.Decoder(_Body)


async def converted(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A file of result lines as a file of Parquet, in pieces."""
    pipe, splitter = _Pipe(), Splitter()
    sink = ParquetSink(cast("Any", pipe), SCHEMA)
    lines: list[bytes] = []
    size = 0
    async for chunk in chunks:
        lines += [line.data or b"" for line in splitter.feed(chunk)]
        size += len(chunk)
        if size >= BATCH_BYTES and lines:
            await asyncio.to_thread(_write, sink, lines)
            lines, size = [], 0
            if piece := pipe.taken():
                yield piece
    lines += [line.data or b"" for line in splitter.finish()]
    await asyncio.to_thread(_write, sink, lines)
    await asyncio.to_thread(sink.close)
    yield pipe.taken()


class _Pipe(io.RawIOBase):
    """Buffers the output of a Parquet writer until it is taken."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Keep some bytes."""
        piece = bytes(data)
        self._pieces.append(piece)
        self._at += len(piece)
        return len(piece)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._at

    def taken(self) -> bytes:
        """The bytes written since the last call."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def _write(sink: ParquetSink, lines: Iterable[bytes]) -> None:
    rows = [_row(line) for line in lines]
    if not rows:
        return
    columns = {name: pa.array([row.get(name) for row in rows], SCHEMA.field(name).type) for name in _NAMES}
    columns[_EMBEDDING.name] = _vectors([row.get(_EMBEDDING.name) for row in rows])
    sink.write(pa.RecordBatch.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA))


def _vectors(vectors: list[bytes | None]) -> pa.Array:
    """Vectors of float32 as bytes, as a column of lists."""
    content = b"".join(vector or b"" for vector in vectors)
    numbers = pa.Array.from_buffers(pa.float32(), len(content) // FLOAT_BYTES, [None, pa.py_buffer(content)])
    ends = accumulate((len(vector or b"") // FLOAT_BYTES for vector in vectors), initial=0)
    mask = pa.array([vector is None for vector in vectors], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(array("i", ends), pa.int32()), numbers, mask=mask)


def _row(line: bytes) -> dict[str, Any]:
    try:
        found = failures.decode(line)
    except UNREADABLE:
        # Half of a surrogate pair, for example, which JSON has and UTF-8 has not.
        return {"body": line.decode("utf-8", "replace"), "error_message": "the line cannot be read"}
    response = found.response or Reply()
    row: dict[str, Any] = {
        "custom_id": found.custom_id,
        "status_code": response.status_code,
        "request_id": response.request_id,
        "attempts": found.tidemill.attempts,
        "server": found.tidemill.server,
        "copy_of": found.tidemill.copy_of,
        "input_tokens": found.tidemill.input_tokens,
        "output_tokens": found.tidemill.output_tokens,
    }
    reply = _Body()
    if found.response is not None:
        row["body"] = bytes(response.body).decode("utf-8", "replace")
        reply = _reply(response.body)
        row["model"] = reply.model
        row |= _answer(line, response.body, reply)
    error = found.error
    if error is None and found.response is not None and not response.is_good:
        said, kind, code, _ = server_error.read(response.body)
        error = Error(code, said or server_error.quoted(response.body), kind)
    if error is not None:
        row["error_code"], row["error_message"] = error.name, error.text
    return row


def _reply(body: msgspec.Raw) -> _Body:
    try:
        return _bodies.decode(body)
    except UNREADABLE:
        return _Body()


def _answer(line: bytes, body: msgspec.Raw, reply: _Body) -> dict[str, Any]:
    """The text that the model wrote, or the one embedding in place of the body."""
    if len(reply.data) == 1:
        try:
            found = result_of(line)
            row: dict[str, Any] = {_EMBEDDING.name: found.vector()}
        except RowError:
            return {}
        return row if found.is_text_vector else {**row, "body": None}
    if reply.data:
        return {}
    return {"answer": _words(body)}


def _words(body: msgspec.Raw) -> str | None:
    """The first choice, or the whole answer, in words; empty only if the reply has no others."""
    try:
        whole = msgspec.json.decode(body)
        if not isinstance(whole, dict):
            return None
        found: str | None = None
        for first, *path in _ANSWERS:
            value = whole.get(first)
            said = list(texts(value[:1] if first == "choices" and isinstance(value, list) else value, path))
            if "".join(said):
                return "".join(said)
            found = "" if said else found
    except UNREADABLE:
        return None
    return found
