"""Parses multipart forms as they arrive, within bounds."""

import logging
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tidemill.schemas.resources.error import ApiError

PARTS_MAX = 16
PART_HEADERS_MAX = 8
PART_HEADER_BYTES_MAX = 4096
BOUNDARY_CHARS_MAX = 200
_DASHES = b"--"
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*+"')
_EXTENDED = re.compile(rb";\s*filename\*=(utf-8|iso-8859-1)'[\w-]*'([\w%!#$&+.^`|~-]+)", re.ASCII | re.IGNORECASE)

# The parser logs malformed bytes; what a user sent must not get into a log.
_silent = logging.getLogger("tidemill.api.uploads.multipart")
_silent.disabled = True


class MultipartError(ApiError):
    """The form is malformed or exceeds a bound; the text quotes nothing of the form."""

    def __init__(self, fault: str) -> None:
        super().__init__(400, f"Could not read the upload: {fault}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PartBegan:
    """A part begins: the name of its field, and its file name, if it has one."""

    name: str
    filename: str | None


Event = PartBegan | bytes | None
"""The beginning of a part, some bytes of it, or None at its end."""


class Form:
    """Turns the bytes of a body into events."""

    def __init__(self, content_type: str | None) -> None:
        """Begin a form.

        Raises:
            MultipartError: The content type is not that of a form, or has no boundary.
        """
        self._prefix: bytes | None = b""
        """The first bytes of the body, until the first boundary is recognised."""
        # The callbacks do not know the form: it is freed with its request, not by a later collection.
        self._read = _Callbacks()
        self._parser = MultipartParser(
            _boundary(content_type),
            {
                "on_part_begin": self._read.part_begin,
                "on_part_data": self._read.part_data,
                "on_part_end": self._read.part_end,
                "on_header_field": self._read.header_field,
                "on_header_value": self._read.header_value,
                "on_header_end": self._read.header_end,
                "on_headers_finished": self._read.headers_finished,
                "on_end": self._read.end,
            },
            max_header_count=PART_HEADERS_MAX,
            max_header_size=PART_HEADER_BYTES_MAX,
        )
        self._parser.logger = _silent

    @property
    def is_whole(self) -> bool:
        """Whether the closing boundary was seen."""
        return self._read.is_whole

    def feed(self, data: bytes) -> list[Event]:
        """Parse the next bytes of the body into events.

        Raises:
            MultipartError: They are malformed, or a bound is passed.
        """
        # Bytes after the closing boundary are ignored.
        if not self.is_whole and (known := self._begun(data)):
            try:
                self._parser.write(known)
            except FormParserError as error:
                raise MultipartError("the multipart body is malformed") from error
        events, self._read.events = self._read.events, []
        return events

    def _begun(self, data: bytes) -> bytes:
        """The bytes from the first boundary on; only line breaks may precede it.

        The parser skips other bytes or not, depending on where the body is cut.
        """
        if self._prefix is None:
            return data
        self._prefix = (self._prefix + data).lstrip(b"\r\n")
        if len(self._prefix) < len(_DASHES):
            return b""
        if not self._prefix.startswith(_DASHES):
            raise MultipartError("the multipart body is malformed")
        prefix, self._prefix = self._prefix, None
        return prefix


class _Callbacks:
    """The callbacks of a form's parser, which collect the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.is_whole = False
        self._parts = 0
        self._headers: dict[bytes, bytes] = {}
        self._field = b""
        self._value = b""

    def part_begin(self) -> None:
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise MultipartError(f"the form has more than {PARTS_MAX} parts")
        self._headers = {}

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def headers_finished(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        if (name := options.get(b"name")) is None:
            raise MultipartError("a part of the form has no name")
        filename = _extended(disposition)
        if filename is None and (plain := options.get(b"filename")) is not None:
            filename = plain.decode(errors="replace")
        self.events.append(PartBegan(name=name.decode(errors="replace"), filename=filename))

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self.events.append(data[start:end])

    def part_end(self) -> None:
        self.events.append(None)

    def end(self) -> None:
        self.is_whole = True


def _extended(disposition: bytes) -> str | None:
    """The file name of `filename*` (RFC 8187), which precedes `filename`; the parser drops it."""
    if (match := _EXTENDED.search(_QUOTED.sub(b"", disposition))) is None:
        return None
    try:
        return unquote_to_bytes(match[2]).decode(match[1].decode())
    except UnicodeDecodeError:
        return None


def _boundary(content_type: str | None) -> bytes:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise MultipartError("the request must be multipart/form-data")
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= BOUNDARY_CHARS_MAX:
        raise MultipartError("the multipart boundary is missing or too long")
    return boundary
