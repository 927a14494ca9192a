"""The key and the headers of a record of `tidemill.intake`, from a direct producer.

| part | holds |
|---|---|
| key | the name of the stream |
| `authorization` | `Bearer` and an API key |
| `tidemill-end` | `true` on a stream's last record, which may have no lines |
| `tidemill-seq` | a number that rises with each record; a record whose number does not is a copy |
| `tidemill-window` | on the first record: the completion window |
| `tidemill-endpoint` | on the first record: the endpoint; else the url of its first line |
| `tidemill-metadata` | on the first record: a JSON object of strings |
| `tidemill-output` | on the first record: `one` file, or `numbered` files |
| `traceparent` | on the first record: W3C's context of the trace that the batch continues |

Other names that begin with `tidemill-` are a mistake, and ingest rejects the record.

The api opens a batch of its own with a record without lines. Its key is the batch's id, which is the name of the
stream; no other record opens a stream with a name of this form.

| header | holds |
|---|---|
| `tidemill-opens` | a `BatchCreated` |
| `tidemill-signature` | the signature of the api over the SHA-256 of `tidemill-opens` |
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import orjson

from tidemill.schemas import ids, traces
from tidemill.schemas.bounds import METADATA_KEY_CHARS_MAX as KEY_CHARS_MAX
from tidemill.schemas.bounds import METADATA_PAIRS_MAX, NAME_CHARS_MAX
from tidemill.schemas.bounds import METADATA_VALUE_CHARS_MAX as VALUE_CHARS_MAX
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.log import codec, signing
from tidemill.schemas.log.codec import TRACEPARENT, DecodeError
from tidemill.schemas.log.dead_letters import UNREAD
from tidemill.schemas.log.messages import BatchCreated
from tidemill.schemas.log.signing import SignatureError, Signer, Verifier

AUTHORIZATION: Final = "authorization"
END: Final = "tidemill-end"
SEQ: Final = "tidemill-seq"
WINDOW: Final = "tidemill-window"
ENDPOINT: Final = "tidemill-endpoint"
METADATA: Final = "tidemill-metadata"
OUTPUT: Final = "tidemill-output"
OPENS: Final = "tidemill-opens"
SIGNATURE: Final = "tidemill-signature"
TICK: Final = "tidemill-tick"
"""Marks a record that ingest sends to itself when a partition is assigned, to do the work that is due there."""

PRODUCERS_HEADERS: Final = (END, SEQ, WINDOW, ENDPOINT, METADATA, OUTPUT)
_HEADERS: Final = frozenset({AUTHORIZATION, *PRODUCERS_HEADERS, OPENS, SIGNATURE, TICK, TRACEPARENT})

OUTPUTS: Final = ("one", "numbered")
SEQ_DIGITS_MAX: Final = 18


class IntakeError(Exception):
    """A record is rejected; the text says why, and quotes neither user input nor a credential."""

    def __init__(self, text: str, project: str | None = None) -> None:
        super().__init__(text)
        self.project = project
        """The project whose record it is, if a credential for its stream says so."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """The key and headers of every record."""

    name: str
    ends: bool = False
    seq: int | None = None


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """The options of a stream's first record; None for the default."""

    window: str | None = None
    endpoint: str | None = None
    metadata: dict[str, str] | None = None
    numbered: bool = False
    """Whether the output is split into numbered files."""
    traceparent: str | None = None
    """The trace that the batch continues."""


def own_headers(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    """Our headers by their names in lower case; of equal names the last one counts.

    Raises:
        IntakeError: A value is not UTF-8.
    """
    found = {}
    for name, content in headers:
        if (lower := name.lower()) == TRACEPARENT:
            found[lower] = traces.parsed(content) or ""
        elif lower == AUTHORIZATION or lower.startswith("tidemill-"):
            try:
                found[lower] = (content or b"").decode()
            except UnicodeDecodeError:
                shown = lower if lower in _HEADERS else "tidemill-…"
                raise IntakeError(f"the header {shown} is not UTF-8") from None
    return found


def label(key: bytes | None, headers: Mapping[str, str]) -> Label:
    """Decode the key, and the headers that `own_headers` returned.

    Raises:
        IntakeError: The key or a header is invalid, or a header of a direct producer is unknown.
    """
    if UNREAD in headers:
        # Any producer may send this header, so its text stays out of the log of the process.
        raise IntakeError("its batch of records cannot be decompressed, or is too large then")
    try:
        name = stream_name((key or b"").decode())
    except UnicodeDecodeError:
        raise IntakeError("the key, which is the stream's name, is not UTF-8") from None
    except IntakeError as error:
        raise IntakeError(f"the key, which is the stream's name: {error}") from None
    # A later version of the api may add headers to its own records.
    if not _HEADERS.issuperset(headers) and not ids.is_batch_id(name):
        raise IntakeError(f"it has an unknown header; those of producers are {', '.join(PRODUCERS_HEADERS)}")
    ends = headers.get(END, "false").lower()
    if ends not in {"true", "false"}:
        raise IntakeError(f"the header {END} must be true or false")
    seq = headers.get(SEQ)
    if seq is not None and not (seq.isascii() and seq.isdigit() and len(seq) <= SEQ_DIGITS_MAX):
        raise IntakeError(f"the header {SEQ} must be a number of at most {SEQ_DIGITS_MAX} digits")
    return Label(name=name, ends=ends == "true", seq=None if seq is None else int(seq))


def stream_name(text: str) -> str:
    """Check the name of a stream.

    Raises:
        IntakeError: It is invalid.
    """
    if not text or len(text) > NAME_CHARS_MAX or not text.isprintable():
        raise IntakeError(f"it must be 1 to {NAME_CHARS_MAX} printable characters")
    return text


def stream_options(headers: Mapping[str, str], windows: Collection[str]) -> StreamOptions:
    """Decode the options in the `own_headers` of a stream's first record; `windows` are the allowed ones.

    Raises:
        IntakeError: An option has a value that is not allowed.
    """
    window, endpoint, metadata = headers.get(WINDOW), headers.get(ENDPOINT), headers.get(METADATA)
    if window is not None and window not in windows:
        raise IntakeError(f"the header {WINDOW} must be one of {', '.join(windows)}")
    if endpoint is not None and endpoint not in ENDPOINTS:
        raise IntakeError(f"the header {ENDPOINT} must be one of {', '.join(ENDPOINTS)}")
    output = headers.get(OUTPUT, OUTPUTS[0])
    if output not in OUTPUTS:
        raise IntakeError(f"the header {OUTPUT} must be one of {', '.join(OUTPUTS)}")
    return StreamOptions(
        window=window,
        endpoint=endpoint,
        metadata=None if metadata is None else _metadata(metadata),
        numbered=output == "numbered",
        traceparent=headers.get(TRACEPARENT) or None,
    )


def opening_headers(signer: Signer, command: BatchCreated) -> list[tuple[str, bytes]]:
    """The headers of a record that opens a batch of the api."""
    content = codec.encode(command)
    return [(OPENS, content), (SIGNATURE, signer.sign(signing.BATCH, _digest(content)))]


def opening(headers: Mapping[str, str], verifier: Verifier) -> BatchCreated | None:
    """The batch that a record opens, from its `own_headers`; None if it opens none.

    Raises:
        IntakeError: The api has not signed it.
    """
    if (content := headers.get(OPENS)) is None:
        return None
    try:
        digest, _ = verifier.payload(signing.BATCH, headers.get(SIGNATURE, "").encode())
        if digest != _digest(content.encode()):
            raise IntakeError(f"the header {SIGNATURE} is of another batch")
        command = codec.decode_command(content.encode())
    except SignatureError as error:
        raise IntakeError(f"the header {SIGNATURE} is invalid: {error}") from None
    except DecodeError:
        raise IntakeError(f"the header {OPENS} cannot be read") from None
    if not isinstance(command, BatchCreated):
        raise IntakeError(f"the header {OPENS} creates no batch")
    return command


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def secret(headers: Mapping[str, str]) -> str:
    """The credential of a record.

    Raises:
        IntakeError: The record has none.
    """
    scheme, _, found = headers.get(AUTHORIZATION, "").strip().partition(" ")
    if scheme.lower() != "bearer" or not found.strip():
        raise IntakeError(f"the header {AUTHORIZATION} with a bearer key is missing")
    return found.strip()


def _metadata(text: str) -> dict[str, str]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise IntakeError(f"the header {METADATA} is not JSON") from None
    if not isinstance(found, dict) or len(found) > METADATA_PAIRS_MAX:
        raise IntakeError(f"the header {METADATA} must be an object of at most {METADATA_PAIRS_MAX} pairs")
    for name, content in found.items():
        if not isinstance(content, str) or len(name) > KEY_CHARS_MAX or len(content) > VALUE_CHARS_MAX:
            raise IntakeError(
                f"the header {METADATA} must hold strings of at most {VALUE_CHARS_MAX} characters, "
                f"named in at most {KEY_CHARS_MAX}"
            )
    return found
