"""Bytes to messages and back: the one place that knows how a record is written.

Lines travel as they are, many to a record; what is said about them stands in the record's headers:

| header | on | holds |
|---|---|---|
| `tidemill-kind` | `commands`, `outcomes` | the message's kind; `lines` for result lines |
| `tidemill-batch` | `requests`, `outcomes` with lines | the batch id |
| `tidemill-first` | `requests` | index of the first line, the first line of a batch is 0 |
| `tidemill-project` | `requests` | the project |
| `tidemill-deadline` | `requests` | Unix seconds |
| `tidemill-created` | `requests` | Unix seconds: no outcome of the batch is older |
| `tidemill-url` | `requests` | the endpoint, `/v1/chat/completions` |
| `tidemill-ref` | `requests` | JSON of a `LineRef`: the one line is in the store, the value is empty |
| `tidemill-marks` | `outcomes` with lines | JSON list of `LineMark`, one a line of the value, in order |
| `tidemill-ref` | `outcomes` with lines | JSON of a `LineRef`: the result line is in the store, the value empty |
| `tidemill-key` | both | id of the key of the batch that the value is sealed with (`src/tidemill/sealing/`) |
| `tidemill-lines` | `requests` that are sealed | how many lines the value holds |
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

import msgspec
from pydantic import BaseModel, TypeAdapter, ValidationError

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
    BatchCreated,
    BatchRecord,
    Claim,
    Command,
    Erasure,
    Fact,
    FileRecord,
    KeyRecord,
    LedgerRecord,
    Piece,
    Secret,
)
from tidemill.schemas.log.part import LARGE_PREFIX
from tidemill.schemas.log.topics import COMMANDS

Headers = Sequence[tuple[str, bytes | None]]
"""As they come from the log: names may be anything, also the same twice, and a value may be null."""

KIND: Final = "tidemill-kind"
LINES: Final = b"lines"
KEY: Final = "tidemill-key"
SEALED_LINES_MAX: Final = 1_024
"""Of one record, as far as its header is believed: ingest packs a few dozen."""
SEAL_BYTES: Final = 28
"""What a sealed value has more than the value: a nonce of 12 bytes and a tag of 16."""
VERSION_HEADER: Final = "tidemill-v"
"""The major version of a record whose value is lines; one that does not say is of the first."""
_VERSION: Final = b"%d" % VERSION


class DecodeError(Exception):
    """A record cannot be read; the text says why."""


Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
"""What has its place in a column of 32 bits."""
Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]
LINES_MAX: Final = 4096
"""Lines of one record."""
_DIGITS_MAX: Final = 16


class LineRef(msgspec.Struct, frozen=True):
    """A line that is too large for a record: `length` bytes at `offset` of the object `key`."""

    key: Annotated[str, msgspec.Meta(max_length=STORE_KEY_CHARS_MAX)]
    offset: Annotated[int, msgspec.Meta(ge=0, le=SIZE_MAX)]
    length: Annotated[int, msgspec.Meta(ge=0, le=LARGE_BYTES_MAX)]


class LineMark(msgspec.Struct, frozen=True, array_like=True):
    """What the fold needs to know of one result line."""

    index: Annotated[int, msgspec.Meta(ge=0, lt=BATCH_LINES_MAX)]
    """Place of the line in its batch, from 0."""
    size: Count
    """Bytes of the result line, its newline included."""
    failed: bool
    """Whether it belongs into the error file."""
    usage: tuple[Tokens, Tokens, Tokens, Tokens] | None = (0, 0, 0, 0)
    """Tokens: input, cached of these, output, reasoning of these; None where the server said what cannot be."""
    attempts: Count = 1
    """Calls that were made for it."""


@dataclass(frozen=True, slots=True)
class Seal:
    """How the value of a record of requests is sealed."""

    key_id: str
    lines: int
    """How many it holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestHead:
    """What a record of `requests` says about its lines."""

    batch_id: str
    project: str
    first: int
    deadline: int
    url: str
    ref: LineRef | None = None
    created: int | None = None
    """When the batch was created, Unix seconds; the same in each copy of the record."""
    seal: Seal | None = None


T = TypeVar("T")

_marks = msgspec.json.Decoder(Annotated[list[LineMark], msgspec.Meta(max_length=LINES_MAX)])
_refs = msgspec.json.Decoder(LineRef)
_encoder = msgspec.json.Encoder()


def encode(message: BaseModel) -> bytes:
    """A message as the value of a record."""
    return message.model_dump_json(exclude_none=True).encode()


def _decoder(kind: Any) -> Callable[[bytes | None], Any]:
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
"""Reads the value of a record; raises `DecodeError`, with the field's name, where it is not what is named."""

decode_command: Decoder[Command] = _decoder(Command)
"""Of `commands`."""
decode_fact: Decoder[Fact] = _decoder(Fact)
"""Of `outcomes`, where the record holds no lines."""
decode_batch: Decoder[BatchRecord] = _decoder(BatchRecord)
decode_file: Decoder[FileRecord] = _decoder(FileRecord)
decode_key: Decoder[KeyRecord] = _decoder(KeyRecord)
decode_erasure: Decoder[Erasure] = _decoder(Erasure)
"""Of `secrets`, under a batch id."""
decode_secret: Decoder[Secret] = _decoder(Secret)
"""Of the same, under a batch id, `/` and a key's id."""
decode_ledger: Decoder[LedgerRecord] = _decoder(LedgerRecord)
decode_audit: Decoder[AuditRecord] = _decoder(AuditRecord)
decode_claim: Decoder[Claim] = _decoder(Claim)
decode_piece: Decoder[Piece] = _decoder(Piece)
"""Of `uploads`."""


def batch_of(message: Command | Fact) -> str | None:
    """The batch that a message is about; None of a tick."""
    batch = getattr(message, "batch", None)
    found: str | None = getattr(message, "batch_id", None) if batch is None else batch.id
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """The batch that a record names, as far as that can be read."""

    batch_id: str
    created: BatchCreated | None = None
    """The record itself, where it creates the batch."""


def named(topic: str, headers: Iterable[tuple[str, bytes | None]] | None, value: bytes | None) -> Named | None:
    """Which batch a record of `commands` or `outcomes` names, whatever else is wrong with it."""
    try:
        if topic == COMMANDS.name:
            message: Command | Fact = decode_command(value)
        elif kind_of(headers) == LINES:
            batch_id = dict(headers or ()).get("tidemill-batch") or b""
            return Named(batch_id=_text(batch_id, ID_CHARS_MAX))
        else:
            message = decode_fact(value)
    except (DecodeError, ValueError):
        return None
    found = batch_of(message)
    return (
        None
        if found is None
        else Named(batch_id=found, created=message if isinstance(message, BatchCreated) else None)
    )


def lines_batch(headers: Iterable[tuple[str, bytes | None]] | None) -> str | None:
    """The batch whose lines a record of `outcomes` says it holds; None where it says nothing of the kind."""
    if kind_of(headers) != LINES:
        return None
    return (dict(headers or ()).get("tidemill-batch") or b"").decode(errors="replace")


def request_headers(head: RequestHead) -> Headers:
    """The headers of a record of `requests`."""
    headers = [
        (VERSION_HEADER, _VERSION),
        ("tidemill-batch", head.batch_id.encode()),
        ("tidemill-project", head.project.encode()),
        ("tidemill-first", b"%d" % head.first),
        ("tidemill-deadline", b"%d" % head.deadline),
        ("tidemill-url", head.url.encode()),
    ]
    if head.ref is not None:
        headers.append(("tidemill-ref", _encoder.encode(head.ref)))
    if head.created is not None:
        headers.append(("tidemill-created", b"%d" % head.created))
    if head.seal is not None:
        headers += [(KEY, head.seal.key_id.encode()), ("tidemill-lines", b"%d" % head.seal.lines)]
    return headers


def request_head(headers: Iterable[tuple[str, bytes | None]]) -> RequestHead:
    """Read the headers of a record of `requests`.

    Raises:
        DecodeError: One is missing or malformed.
    """
    found = _readable(headers)
    try:
        return RequestHead(
            batch_id=_text(found["tidemill-batch"], ID_CHARS_MAX),
            project=_text(found["tidemill-project"], NAME_CHARS_MAX),
            first=_number(found["tidemill-first"], BATCH_LINES_MAX - 1),
            deadline=_number(found["tidemill-deadline"], TIME_MAX),
            url=_text(found["tidemill-url"], WORD_CHARS_MAX),
            ref=_refs.decode(ref) if (ref := found.get("tidemill-ref")) is not None else None,
            created=_number(created, TIME_MAX) if (created := found.get("tidemill-created")) is not None else None,
            seal=_seal(found),
        )
    except KeyError as error:
        raise DecodeError(f"the header {error.args[0]} is missing") from error
    except (ValueError, msgspec.MsgspecError) as error:
        raise DecodeError(f"a header is malformed: {error}") from error


def lines_headers(batch_id: str, marks: list[LineMark], *, ref: LineRef | None = None) -> Headers:
    """The headers of a record of `outcomes` that holds result lines.

    Args:
        batch_id: The batch.
        marks: One a line.
        ref: Where the one line is in the store, if it is too large for the record, whose value is then empty.
    """
    headers = [
        (KIND, LINES),
        (VERSION_HEADER, _VERSION),
        ("tidemill-batch", batch_id.encode()),
        ("tidemill-marks", _encoder.encode(marks)),
    ]
    if ref is not None:
        headers.append(("tidemill-ref", _encoder.encode(ref)))
    return headers


def kind_of(headers: Iterable[tuple[str, bytes | None]] | None) -> bytes:
    """What a record of `outcomes` says that it is; empty where it does not."""
    return dict(headers or ()).get(KIND) or b""


def lines_ref(headers: Iterable[tuple[str, bytes | None]]) -> LineRef | None:
    """Where the one result line of a record is in the store; None where it is in the record's value.

    Raises:
        DecodeError: The header is malformed.
    """
    if (ref := dict(headers).get("tidemill-ref")) is None:
        return None
    try:
        return _refs.decode(ref)
    except (ValueError, msgspec.MsgspecError) as error:
        raise DecodeError(f"a header is malformed: {error}") from error


def key_id(headers: Iterable[tuple[str, bytes | None]]) -> str | None:
    """The id of the key that the value of a record of lines is sealed with; None where it is not."""
    key = {name: content for name, content in headers if content is not None}.get(KEY)
    return None if key is None else key[:ID_CHARS_MAX].decode(errors="replace")


def lines_marks(headers: Iterable[tuple[str, bytes | None]], size: int) -> tuple[str, list[LineMark]]:
    """Read the headers of a record of result lines.

    Args:
        headers: The record's headers.
        size: The length of its value in bytes. The marks must add up to it, or to the line that is referred to.

    Returns:
        The batch id and one mark a line.

    Raises:
        DecodeError: They are missing, malformed, or do not fit the value.
    """
    found = _readable(headers)
    try:
        batch_id = _text(found["tidemill-batch"], ID_CHARS_MAX)
        marks = _marks.decode(found["tidemill-marks"])
    except KeyError as error:
        raise DecodeError(f"the header {error.args[0]} is missing") from error
    except (ValueError, msgspec.MsgspecError) as error:
        raise DecodeError(f"a header is malformed: {error}") from error
    if (ref := lines_ref(found.items())) is not None:
        if size or len(marks) != 1:
            raise DecodeError("a record that refers to a line holds none")
        if not ref.key.startswith(f"{LARGE_PREFIX}{batch_id}/"):
            raise DecodeError("it refers to what is no result of its batch")
        size = ref.length
    elif KEY in found:
        size -= SEAL_BYTES
    if sum(mark.size for mark in marks) != size:
        raise DecodeError("the marks do not add up to the value's length")
    return batch_id, marks


def _readable(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, bytes]:
    """The headers of a record of lines, by name; one that is null is not there.

    Raises:
        DecodeError: It is of another major version.
    """
    found = {name: content for name, content in headers if content is not None}
    if (version := found.get(VERSION_HEADER, _VERSION)) != _VERSION:
        raise DecodeError(f"it is of version {version[:8].decode(errors='replace')!r}, not {VERSION}")
    return found


def _text(content: bytes, chars_max: int) -> str:
    if len(content) > chars_max:
        raise ValueError(f"it has more than {chars_max} bytes")
    return content.decode()


def _seal(found: dict[str, bytes]) -> Seal | None:
    if (key := found.get(KEY)) is None:
        return None
    return Seal(_text(key, ID_CHARS_MAX), _number(found["tidemill-lines"], SEALED_LINES_MAX))


def _number(content: bytes, most: int) -> int:
    if not content.isdigit() or len(content) > _DIGITS_MAX or int(content) > most:
        raise ValueError(f"it is no number from 0 to {most}")
    return int(content)
