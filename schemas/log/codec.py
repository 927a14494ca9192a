"""Encodes and decodes the values and headers of records.

A record holds many lines unchanged, and its headers describe them:

| header | on | holds |
|---|---|---|
| `tidemill-kind` | `commands`, `outcomes` | the message's kind; `lines` for result lines |
| `tidemill-batch` | `requests`, `outcomes` with lines | the batch id |
| `tidemill-first` | `requests` | index of the first line, the first line of a batch is 0 |
| `tidemill-indices` | `requests` | JSON list of the indices of the lines, if the next one does not always follow |
| `tidemill-project` | `requests` | the project |
| `tidemill-deadline` | `requests` | Unix seconds |
| `tidemill-created` | `requests` | Unix seconds: no outcome of the lines is older |
| `tidemill-url` | `requests` | the endpoint, `/v1/chat/completions` |
| `traceparent` | `requests` | W3C's context of the batch's trace, if it has one |
| `tidemill-headers` | `requests` | header lines of each call, from the client (`schemas/headers.py`) |
| `tidemill-validated` | `requests` | `1` if each answer must fit a JSON Schema, which the store has |
| `tidemill-marks` | `outcomes` with lines | JSON list of `LineMark`, one for each line of the value |
| `tidemill-model` | `outcomes` with lines | the model that the lines name |
| `tidemill-ref` | both | JSON of a `LineRef`: the only line, or its result, is in the store, the value empty |
| `tidemill-key` | both | id of the batch key that encrypts the value (`src/tidemill/sealing/`) |
| `tidemill-lines` | `requests`, encrypted | number of lines in the value |
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeVar

import msgspec
from pydantic import BaseModel, TypeAdapter, ValidationError

from tidemill.schemas import UNREADABLE, traces
from tidemill.schemas import headers as forwarded
from tidemill.schemas.bounds import (
    BATCH_LINES_MAX,
    ID_CHARS_MAX,
    LARGE_BYTES_MAX,
    NAME_CHARS_MAX,
    PARAM_CHARS_MAX,
    SIZE_MAX,
    STORE_KEY_CHARS_MAX,
    TIME_MAX,
    TOKENS_MAX,
    WORD_CHARS_MAX,
)
from tidemill.schemas.log.messages import (
    VERSION,
    AuditRecord,
    BatchRecord,
    Claim,
    Command,
    Erasure,
    Fact,
    FileRecord,
    KeyRecord,
    LedgerRecord,
    QueueRecord,
    Secret,
    UploadMessage,
)
from tidemill.schemas.log.part import LARGE_PREFIX

Headers = Sequence[tuple[str, bytes | None]]
"""In the form of the log: names may repeat, and values may be null."""

KIND: Final = "tidemill-kind"
LINES: Final = b"lines"
KEY: Final = "tidemill-key"
HEADERS: Final = "tidemill-headers"
MODEL: Final = "tidemill-model"
TRACEPARENT: Final = "traceparent"
BATCH, FIRST, INDICES, MARKS = "tidemill-batch", "tidemill-first", "tidemill-indices", "tidemill-marks"
SEALED_LINES_MAX: Final = 1_024
"""Lines of one sealed record; ingest packs up to 128."""
SEAL_BYTES: Final = 28
"""Bytes that encryption adds to a value: a nonce of 12 bytes and a tag of 16."""
VERSION_HEADER: Final = "tidemill-v"
"""The major version of a record of lines; 1 if it is missing."""
_VERSION: Final = b"%d" % VERSION


class DecodeError(ValueError):
    """A record cannot be decoded; the text says why."""


Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
"""A number that fits a column of 32 bits."""
Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]
Index = Annotated[int, msgspec.Meta(ge=0, lt=BATCH_LINES_MAX)]
LINES_MAX: Final = 4096
"""Lines of one record."""
_DIGITS_MAX: Final = 16


class LineRef(msgspec.Struct, frozen=True):
    """A line that is too large for a record: `length` bytes at `offset` of the object `key`."""

    key: Annotated[str, msgspec.Meta(max_length=STORE_KEY_CHARS_MAX)]
    offset: Annotated[int, msgspec.Meta(ge=0, le=SIZE_MAX)]
    length: Annotated[int, msgspec.Meta(ge=0, le=LARGE_BYTES_MAX)]


class LineMark(msgspec.Struct, frozen=True, array_like=True):
    """Describes one result line to results."""

    index: Index
    """Number of the line in its batch, from 0."""
    size: Count
    """Bytes of the result line, its newline included."""
    failed: bool
    """Whether it goes into the error file."""
    usage: tuple[Tokens, Tokens, Tokens, Tokens] | None = (0, 0, 0, 0)
    """Tokens: input, cached of these, output, and reasoning of these or the units of the endpoint
    (`schemas/endpoints.py`); None if the server named impossible counts."""
    attempts: Count = 1
    """Calls made for the line."""


@dataclass(frozen=True, slots=True)
class Seal:
    """The encryption of a record of requests."""

    key_id: str
    lines: int
    """Lines in the record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestHead:
    """The headers of a record of `requests`."""

    batch_id: str
    project: str
    first: int
    deadline: int
    url: str
    ref: LineRef | None = None
    created: int | None = None
    """When the batch was created, Unix seconds; for a line of a stream, a time before it was first published."""
    seal: Seal | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """More headers of each call."""
    traceparent: str | None = None
    """The context of the batch's trace."""
    validated: bool = False
    """Whether the store has a JSON Schema that each answer must fit (`schema_key`)."""
    indices: tuple[int, ...] | None = None
    """Indices of the lines, if there are gaps between them, where the batch has lines of other models."""

    def places(self, count: int) -> Sequence[int]:
        """The indices of the record's lines.

        Raises:
            DecodeError: The record does not have this number of lines.
        """
        if self.indices is None:
            return range(self.first, self.first + count)
        if len(self.indices) != count:
            raise DecodeError("it has more or fewer lines than indices")
        return self.indices


T = TypeVar("T")

_marks = msgspec.json.Decoder(Annotated[list[LineMark], msgspec.Meta(max_length=LINES_MAX)])
_refs = msgspec.json.Decoder(LineRef)
_indices = msgspec.json.Decoder(Annotated[tuple[Index, ...], msgspec.Meta(min_length=1, max_length=LINES_MAX)])
_encoder = msgspec.json.Encoder()


def encode(message: BaseModel) -> bytes:
    """Encode a message as the value of a record."""
    return message.model_dump_json(exclude_none=True).encode()


def decoder(kind: Any) -> Callable[[bytes | None], Any]:
    """Make a `Decoder` of messages of this type."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind)

    def decode(value: bytes | None) -> Any:
        if value is None:
            raise DecodeError("the record has no value")
        try:
            return adapter.validate_json(value)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise DecodeError(f"{'.'.join(map(str, fault['loc']))[:PARAM_CHARS_MAX]}: {fault['msg']}") from error

    return decode


Decoder = Callable[[bytes | None], T]
"""Decodes the value of a record; raises `DecodeError` with the name of the invalid field."""

decode_command: Decoder[Command] = decoder(Command)
"""Decodes a record of `commands`."""
decode_fact: Decoder[Fact] = decoder(Fact)
"""Decodes a record of `outcomes` that holds no lines."""
decode_batch: Decoder[BatchRecord] = decoder(BatchRecord)
decode_file: Decoder[FileRecord] = decoder(FileRecord)
decode_key: Decoder[KeyRecord] = decoder(KeyRecord)
decode_erasure: Decoder[Erasure] = decoder(Erasure)
"""Decodes a record of `secrets` under a batch id."""
decode_secret: Decoder[Secret] = decoder(Secret)
"""Decodes a record of `secrets` under a batch id, `/` and a key's id."""
decode_ledger: Decoder[LedgerRecord] = decoder(LedgerRecord)
decode_audit: Decoder[AuditRecord] = decoder(AuditRecord)
decode_claim: Decoder[Claim] = decoder(Claim)
decode_queue: Decoder[QueueRecord] = decoder(QueueRecord)
decode_upload: Decoder[UploadMessage] = decoder(UploadMessage)


def batch_of(message: Command | Fact) -> str | None:
    """The id of a message's batch; None for a tick."""
    batch = getattr(message, "batch", None)
    found: str | None = getattr(message, "batch_id", None) if batch is None else batch.id
    return found


def lines_batch(headers: Iterable[tuple[str, bytes | None]] | None) -> str | None:
    """The batch of a record of `outcomes` with lines; None for other records."""
    found = dict(headers or ())
    return (found.get(BATCH) or b"").decode(errors="replace") if found.get(KIND) == LINES else None


def request_headers(head: RequestHead) -> Headers:
    """The headers of a record of `requests`."""
    headers = [
        (VERSION_HEADER, _VERSION),
        (BATCH, head.batch_id.encode()),
        ("tidemill-project", head.project.encode()),
        (FIRST, b"%d" % head.first),
        ("tidemill-deadline", b"%d" % head.deadline),
        ("tidemill-url", head.url.encode()),
    ]
    if head.indices is not None:
        headers.append((INDICES, _encoder.encode(head.indices)))
    if head.ref is not None:
        headers.append(("tidemill-ref", _encoder.encode(head.ref)))
    if head.created is not None:
        headers.append(("tidemill-created", b"%d" % head.created))
    if head.traceparent is not None:
        headers.append((TRACEPARENT, head.traceparent.encode()))
    if head.headers:
        headers.append((HEADERS, forwarded.lines(head.headers)))
    if head.validated:
        headers.append(("tidemill-validated", b"1"))
    if head.seal is not None:
        headers += [(KEY, head.seal.key_id.encode()), ("tidemill-lines", b"%d" % head.seal.lines)]
    return headers


def request_head(headers: Iterable[tuple[str, bytes | None]]) -> RequestHead:
    """Decode the headers of a record of `requests`.

    Raises:
        DecodeError: One is missing or malformed.
    """
    found = _readable(headers)
    try:
        return RequestHead(
            batch_id=_text(found[BATCH], ID_CHARS_MAX),
            project=_text(found["tidemill-project"], NAME_CHARS_MAX),
            first=_number(found[FIRST], BATCH_LINES_MAX - 1),
            deadline=_number(found["tidemill-deadline"], TIME_MAX),
            url=_text(found["tidemill-url"], WORD_CHARS_MAX),
            ref=_refs.decode(ref) if (ref := found.get("tidemill-ref")) is not None else None,
            created=_number(created, TIME_MAX) if (created := found.get("tidemill-created")) is not None else None,
            seal=None
            if (key := found.get(KEY)) is None
            else Seal(_text(key, ID_CHARS_MAX), _number(found["tidemill-lines"], SEALED_LINES_MAX)),
            validated="tidemill-validated" in found,
            headers=forwarded.parsed(found[HEADERS]) if HEADERS in found else {},
            traceparent=traces.parsed(found.get(TRACEPARENT)),
            indices=_indices.decode(indices) if (indices := found.get(INDICES)) is not None else None,
        )
    except (KeyError, ValueError, *UNREADABLE) as error:
        raise _header_error(error) from error


def lines_headers(batch_id: str, marks: list[LineMark], *, model: str = "", ref: LineRef | None = None) -> Headers:
    """The headers of a record of `outcomes` with result lines, each with its mark.

    `model` is the one that the lines name, empty in a stream. `ref` is the place in the store of a line that is
    too large for the record.
    """
    headers = [
        (KIND, LINES),
        (VERSION_HEADER, _VERSION),
        (BATCH, batch_id.encode()),
        (MARKS, _encoder.encode(marks)),
    ]
    if model:
        headers.append((MODEL, model.encode()))
    if ref is not None:
        headers.append(("tidemill-ref", _encoder.encode(ref)))
    return headers


def lines_model(headers: Iterable[tuple[str, bytes | None]]) -> str:
    """The model that the lines of a record of `outcomes` name; empty if it has no such header."""
    return (dict(headers).get(MODEL) or b"").decode(errors="replace")


def kind_of(headers: Iterable[tuple[str, bytes | None]] | None) -> bytes:
    """The kind of a record of `outcomes`; empty if it has none."""
    return dict(headers or ()).get(KIND) or b""


def lines_ref(headers: Iterable[tuple[str, bytes | None]]) -> LineRef | None:
    """The place of a result line in the store; None if it is in the record's value.

    Raises:
        DecodeError: The header is malformed.
    """
    if (ref := dict(headers).get("tidemill-ref")) is None:
        return None
    try:
        return _refs.decode(ref)
    except UNREADABLE as error:
        raise _header_error(error) from error


def key_id(headers: Iterable[tuple[str, bytes | None]]) -> str | None:
    """The id of the key that encrypts a record of lines; None if it is not encrypted."""
    key = {name: content for name, content in headers if content is not None}.get(KEY)
    return None if key is None else key[:ID_CHARS_MAX].decode(errors="replace")


def lines_marks(headers: Iterable[tuple[str, bytes | None]], size: int) -> tuple[str, list[LineMark]]:
    """Decode the headers of a record of result lines: the batch id, and a mark for each line.

    The marks must add up to the size of its value in bytes, unless the line is in the store.

    Raises:
        DecodeError: A header is missing, malformed, or does not match the value.
    """
    found = _readable(headers)
    try:
        batch_id = _text(found[BATCH], ID_CHARS_MAX)
        marks = _marks.decode(found[MARKS])
    except (KeyError, ValueError, *UNREADABLE) as error:
        raise _header_error(error) from error
    if (ref := lines_ref(found.items())) is not None:
        if size or len(marks) != 1:
            raise DecodeError("a record with a line in the store must have no other")
        if not ref.key.startswith(f"{LARGE_PREFIX}{batch_id}/"):
            raise DecodeError("the record refers to an object of another batch")
        size = ref.length
    elif KEY in found:
        size -= SEAL_BYTES
    if sum(mark.size for mark in marks) != size:
        raise DecodeError("the marks do not add up to the value's length")
    return batch_id, marks


def _readable(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, bytes]:
    """The headers of a record of lines by name, without null values.

    Raises:
        DecodeError: The record has another major version.
    """
    found = {name: content for name, content in headers if content is not None}
    if (version := found.get(VERSION_HEADER, _VERSION)) != _VERSION:
        raise DecodeError(f"the record has version {version[:8].decode(errors='replace')!r}, not {VERSION}")
    return found


def _header_error(error: Exception) -> DecodeError:
    if isinstance(error, KeyError):
        return DecodeError(f"the header {error.args[0]} is missing")
    return DecodeError(f"a header is malformed: {error}")


def _text(content: bytes, chars_max: int) -> str:
    if len(content) > chars_max:
        raise ValueError(f"it has more than {chars_max} bytes")
    return content.decode()


def _number(content: bytes, most: int) -> int:
    if not content.isdigit() or len(content) > _DIGITS_MAX or int(content) > most:
        raise ValueError(f"it is not a number from 0 to {most}")
    return int(content)
