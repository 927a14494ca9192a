"""Reads result lines: the answer, or why there is none."""

import base64
import binascii
import json
import math
import re
import struct
from typing import Any, Final

import msgspec

from tidemill.schemas import UNREADABLE
from tidemill.schemas.endpoints import texts
from tidemill.schemas.jsonl import server_error
from tidemill.tables import RowError, TableError

ERROR_CHARS_MAX: Final = 1_000
FLOAT_BYTES: Final = 4
_CUTS: Final[dict[str | None, str]] = {
    "length": "it ends at the bound of its tokens",
    "content_filter": "a filter of the server cut it",
}
"""The ends of an answer that is not whole, by `finish_reason`."""
POSITIVE, NEGATIVE = 0x7F, 0xFF
"""Last bytes of float32 values that are not finite, and of few finite ones."""


class _Message(msgspec.Struct, frozen=True):
    content: str | list[Any] | None = None
    refusal: str | None = None

    @property
    def text(self) -> str | None:
        """The text, which some servers divide into parts."""
        return "".join(texts(self.content, ())) if isinstance(self.content, list) else self.content


class _Choice(msgspec.Struct, frozen=True):
    message: _Message = _Message()
    finish_reason: str | None = None


class _Vector(msgspec.Struct, frozen=True):
    embedding: str | list[float] = ""


class _Body(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    data: list[_Vector] = []


class _Response(msgspec.Struct, frozen=True):
    body: _Body


class Error(msgspec.Struct, frozen=True):
    """An error of the service, or of a server, whatever that put there."""

    code: Any = None
    message: Any = None
    type: Any = None

    @property
    def name(self) -> str | None:
        """The code, or else the type."""
        return next((str(one) for one in (self.code, self.type) if isinstance(one, str | int | float)), None)

    @property
    def text(self) -> str | None:
        """The message."""
        return self.message if isinstance(self.message, str) else None


class Reply(msgspec.Struct, frozen=True):
    """A server's reply, in which anything may be missing."""

    body: msgspec.Raw = msgspec.Raw(b"null")
    status_code: int | None = None
    request_id: str | None = None

    @property
    def is_good(self) -> bool:
        """Whether the status is one of success."""
        return self.status_code is not None and 200 <= self.status_code < 300  # noqa: PLR2004 - HTTP


class _Extras(msgspec.Struct, frozen=True):
    copy_of: str | None = None
    attempts: int | None = None
    server: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def tokens(self) -> tuple[int, int]:
        """Input and output tokens that the batch counts for the line; 0 if it failed or they are unknown."""
        return self.input_tokens or 0, self.output_tokens or 0


class Result(msgspec.Struct, frozen=True):
    """A line of an output file."""

    custom_id: str
    response: _Response

    def text(self) -> str:
        """The text of a chat.

        Raises:
            RowError: The model refused, or gave no text.
        """
        choice = self.response.body.choices[0] if self.response.body.choices else _Choice()
        if choice.message.refusal:
            raise RowError(f"the model refused: {choice.message.refusal[:ERROR_CHARS_MAX]}")
        if not (text := choice.message.text):
            raise RowError(f"the answer has no text (finish_reason {choice.finish_reason})")
        return text

    @property
    def cut(self) -> str | None:
        """Why the answer ends too early; None if it does not."""
        choices = self.response.body.choices
        return _CUTS.get(choices[0].finish_reason) if choices else None

    @property
    def is_text_vector(self) -> bool:
        """Whether the embedding came as base64, which does not say the type of its numbers."""
        data = self.response.body.data
        return bool(data) and isinstance(data[0].embedding, str)

    def vector(self) -> bytes:
        """The embedding: finite float32, as bytes.

        Raises:
            RowError: There is none, or it is malformed.
        """
        if not self.response.body.data:
            raise RowError("the answer has no embedding")
        found = self.response.body.data[0].embedding
        try:
            # Servers with base64 send float32 with the low byte first, unless asked for others (`NOT_FLOAT32`).
            content = base64.b64decode(found, validate=True) if isinstance(found, str) else _packed(found)
        except (binascii.Error, ValueError) as error:
            raise RowError(f"the embedding is malformed: {error}") from error
        if len(content) % FLOAT_BYTES:
            raise RowError(f"the embedding is malformed: {len(content):,} bytes are not a list of float32")
        if not content or not _is_finite(content):
            raise RowError("the embedding is empty or has a number that is not finite")
        return content


class Failure(msgspec.Struct, frozen=True):
    """A line of an error file, or of an output file whose reply may have any form."""

    custom_id: str | None
    """None of a line that could not be read."""
    error: Error | None = None
    response: Reply | None = None
    tidemill: _Extras = _Extras()

    @property
    def attempts(self) -> int:
        """Calls that the line took, at least."""
        return self.tidemill.attempts or (1 if self.response else 0)

    @property
    def answer(self) -> str | None:
        """The text of a chat that the service found not to fit its schema."""
        try:
            body = None if self.response is None else _bodies.decode(self.response.body)
        except UNREADABLE:
            return None
        return body.choices[0].message.text if body is not None and body.choices else None

    @property
    def why(self) -> str:
        """The code and message, from the service or from the server."""
        code, said = (self.error.name, self.error.text) if self.error else (None, None)
        if self.response is not None:
            code = f"{self.response.status_code}{f' {code}' if code else ''}"
            said = said or server_error.message(self.response.body)
        return f"{code or 'error'}: {said or 'the service gives no reason'}"[:ERROR_CHARS_MAX]


_results: Final = msgspec.json.Decoder(Result)
_bodies: Final = msgspec.json.Decoder(_Body)
failures: Final = msgspec.json.Decoder(Failure)
_NUMBER: Final = re.compile(rb'\{(?:"id":"[\w-]*",)?"custom_id":"(\d{1,18})",')
"""The beginning of a line that this service or this client wrote."""
_ids: Final = msgspec.json.Decoder(msgspec.defstruct("Id", [("custom_id", str)]))


def number_of(line: bytes) -> int:
    """The number of the row of a result line.

    Raises:
        TableError: The line is not the result of a row.
    """
    if (match := _NUMBER.match(line)) is not None:
        return int(match[1])
    try:
        found: Any = _ids.decode(line)
        return int(found.custom_id)
    except (ValueError, *UNREADABLE):
        pass
    try:
        # The reply has half of a surrogate pair, which this parser of the standard library accepts.
        return int(json.loads(line)["custom_id"])
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise TableError(f"a line is not the result of a row: {error}") from error


def result_of(line: bytes) -> Result:
    """Read a line of an output file.

    Raises:
        RowError: The reply is none of its endpoint.
    """
    try:
        return _results.decode(line)
    except UNREADABLE as error:
        raise RowError(f"the reply is malformed: {error}") from error


def failure_of(line: bytes) -> Failure:
    """Read a line of an error file."""
    try:
        return failures.decode(line)
    except UNREADABLE as error:
        return Failure(custom_id=None, error=Error(message=f"the reply is malformed: {error}"))


def _packed(numbers: list[float]) -> bytes:
    try:
        return struct.pack(f"<{len(numbers)}f", *numbers)
    except OverflowError as error:
        raise RowError("the embedding has a number that is not finite as a float32") from error


def _is_finite(content: bytes) -> bool:
    last = content[FLOAT_BYTES - 1 :: FLOAT_BYTES]
    if POSITIVE not in last and NEGATIVE not in last:
        return True
    return all(math.isfinite(number) for (number,) in struct.iter_unpack("<f", content))
