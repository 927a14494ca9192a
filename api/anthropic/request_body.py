"""Turns the body of a create, a JSON object of all requests, into lines of an input file while it arrives.

It holds one request at a time. A request is found by its brackets, then parsed: text that is not JSON is refused
with its place. Values keep the JSON text that the user wrote: a number keeps its digits, a string its escapes.

Source of the rules: Anthropic's API reference, "Create a Message Batch": `requests` with a unique `custom_id`
(`^[a-zA-Z0-9_-]{1,64}$`) and `params` each. As there, `params` are checked after the create; only `stream` is
refused at once, because no answer of a batch can be streamed.
"""

import re
from collections.abc import Generator
from typing import Final, NoReturn

import msgspec

from tidemill.api import errors
from tidemill.api.error_bodies import MESSAGES
from tidemill.schemas import UNREADABLE
from tidemill.schemas.jsonl import malformed, nesting
from tidemill.schemas.jsonl.nesting import DEPTH_MAX

CUSTOM_ID: Final = "^[a-zA-Z0-9_-]{1,64}$"
KEY_BYTES_MAX: Final = 1024
"""Bytes of a name at the first level."""
SHOWN_CHARS_MAX: Final = 64

_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
LEVELS_SKIPPED: Final = 6
_FLAT: Final = rb'[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+"'


def _nested(levels: int) -> bytes:
    """A pattern of text that cuts no string, and no array or object of up to `levels` levels."""
    inside = rb"|[\[{]" + _nested(levels - 1) + rb"[\]}]" if levels else b""
    return rb"(?:" + _FLAT + inside + rb")*+"


_SKIPPED: Final = re.compile(_nested(LEVELS_SKIPPED), re.DOTALL)
"""Stops before a bracket, or before a string that continues beyond the text."""
_IN_STRING: Final = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_NAME: Final = re.compile(rb'"((?:[^"\\]++|\\.)*+)"', re.DOTALL)
_CUSTOM_ID: Final = re.compile(rb'"([a-zA-Z0-9_-]{1,64})"\Z')
_LINE: Final = b'{"custom_id":%b,"method":"POST","url":"%b","body":%b}\n'
_QUOTE: Final = b'"'
_OPEN: Final = b"{["
_STARTS: Final = b'"[-0123456789tfn'
"""First bytes of JSON values that are not objects."""

_objects: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_strings: Final = msgspec.json.Decoder(str)
Step = Generator[None, bytes, None]


class _Params(msgspec.Struct):
    stream: msgspec.Raw = msgspec.Raw(b"false")


_params: Final = msgspec.json.Decoder(_Params)


class RequestReader:
    """Reads one body.

    Args:
        requests_max: Requests that it may have.
        line_bytes_max: Bytes of the line that a request becomes.
    """

    def __init__(self, *, requests_max: int, line_bytes_max: int) -> None:
        self._requests_max = requests_max
        self._line_bytes_max = line_bytes_max
        self._buffer = bytearray()
        self._at = 0
        """Place in the buffer up to which it is read."""
        self._dropped = 0
        """Bytes of the body before the buffer."""
        self._places: dict[bytes, int] = {}
        """The place of each `custom_id`."""
        self._lines: list[bytes] = []
        self._steps = self._body()
        next(self._steps)

    def feed(self, chunk: bytes) -> bytes:
        """The lines of the requests that end in this chunk of at least one byte.

        Raises:
            ApiError: 400, the body is invalid; 413, it has too many requests, or one that is too large.
        """
        self._steps.send(chunk)
        lines, self._lines = self._lines, []
        return b"".join(lines)

    def finish(self) -> None:
        """End the body.

        Raises:
            ApiError: 400, the body is not complete.
        """
        self.feed(b"")
        self._steps.close()

    def _body(self) -> Step:
        """Read the whole body; more text than it has may only be whitespace."""
        yield from self._expect(b"{", "Input should be an object")
        yield from self._space()
        if self._byte() == b"}":
            raise errors.invalid("requests: Field required")
        yield from self._name()
        yield from self._expect(b":")
        yield from self._expect(b"[", "requests: Input should be a valid list")
        yield from self._requests()
        yield from self._space()
        if self._byte() == b",":
            self._at += 1
            yield from self._space()
            yield from self._name()
            raise errors.invalid("requests: Field is given twice")
        yield from self._expect(b"}")
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._buffer):
                self._fail("unexpected content after document")
            self._drop()
            self._buffer += yield

    def _requests(self) -> Step:
        yield from self._space()
        if self._byte() == b"]":
            raise errors.invalid("requests: List should have at least 1 item after validation, not 0")
        while True:
            if self._byte() != b"{":
                if self._byte() in _STARTS:
                    raise self._invalid("Input should be an object")
                self._fail("unexpected character")
            yield from self._request()
            yield from self._space()
            if (end := self._byte()) not in b",]":
                self._fail("unexpected character")
            self._at += 1
            if end == b"]":
                return
            yield from self._space()

    def _request(self) -> Step:
        """Find the end of a request, and write its line."""
        if len(self._places) >= self._requests_max:
            most = self._requests_max
            raise errors.invalid(f"requests: List should have at most {most} items (limit: file_lines_max)")
        self._drop()
        at = depth = 1
        while True:
            at = _SKIPPED.match(self._buffer, at).end()  # type: ignore[union-attr]
            if at == len(self._buffer):
                yield from self._more()
                continue
            byte = self._buffer[at : at + 1]
            at += 1
            if byte == _QUOTE:
                at = yield from self._string(at)
                continue
            depth += 1 if byte in _OPEN else -1
            if depth > DEPTH_MAX:
                raise self._too_deep()
            if not depth:
                break
        self._at = at
        self._lines.append(self._line(bytes(self._buffer[:at])))

    def _string(self, at: int) -> Generator[None, bytes, int]:
        """The position after a string that continues beyond the buffer."""
        while True:
            at = _IN_STRING.match(self._buffer, at).end()  # type: ignore[union-attr]
            if self._buffer[at : at + 1] == _QUOTE:
                return at + 1
            yield from self._more()

    def _more(self) -> Step:
        """Wait for more of a request; its line is longer than its text."""
        if len(self._buffer) > self._line_bytes_max:
            raise self._too_large()
        if not (chunk := (yield)):
            self._at = len(self._buffer)
            self._fail("unexpected end of data")
        self._buffer += chunk

    def _line(self, text: bytes) -> bytes:
        if nesting.exceeds(text, DEPTH_MAX):
            raise self._too_deep()
        try:
            text.decode()
            fields = _objects.decode(text)
        except UNREADABLE:
            self._fail_inside(text)
        custom_id = self._custom_id(fields)
        params = self._of(fields, "params")
        if not params.startswith(b"{"):
            raise self._invalid("Input should be an object", "params")
        for name in fields.keys() - {"custom_id", "params"}:
            raise self._invalid("Extra inputs are not permitted", name[:SHOWN_CHARS_MAX])
        if bytes(_params.decode(params).stream).strip() not in (b"false", b"null"):
            raise self._invalid("Streaming is not supported in a batch", "params.stream")
        if b"\n" in params or b"\r" in params:
            # Outside of a string, where JSON has them, they are whitespace.
            params = params.replace(b"\n", b" ").replace(b"\r", b" ")
        line = _LINE % (custom_id, MESSAGES.encode(), params)
        if len(line) > self._line_bytes_max:
            raise self._too_large()
        self._places[custom_id] = len(self._places)
        return line

    def _custom_id(self, fields: dict[str, msgspec.Raw]) -> bytes:
        found = self._of(fields, "custom_id")
        if not found.startswith(_QUOTE):
            raise self._invalid("Input should be a valid string", "custom_id")
        if b"\\" in found:
            found = msgspec.json.encode(_strings.decode(found))
        if _CUSTOM_ID.match(found) is None:
            raise self._invalid(f"String should match pattern '{CUSTOM_ID}'", "custom_id")
        if (first := self._places.get(found)) is not None:
            raise self._invalid(f"It must be unique, and requests.{first} has it too", "custom_id")
        return found

    def _of(self, fields: dict[str, msgspec.Raw], name: str) -> bytes:
        if name not in fields:
            raise self._invalid("Field required", name)
        return bytes(fields[name]).strip()

    def _invalid(self, fault: str, field: str = "") -> Exception:
        """The error of the next request."""
        place = f"requests.{len(self._places)}{'.' if field else ''}{field}"
        return errors.invalid(f"{place}: {fault}", param=place)

    def _too_deep(self) -> Exception:
        return self._invalid(f"It is nested deeper than the maximum of {DEPTH_MAX} levels")

    def _too_large(self) -> Exception:
        return errors.body_too_large(self._line_bytes_max, param=f"requests.{len(self._places)}")

    def _space(self) -> Step:
        """Skip whitespace up to the next byte."""
        while (at := _SPACE.match(self._buffer, self._at).end()) == len(self._buffer):  # type: ignore[union-attr]
            self._at = at
            self._drop()
            self._buffer += yield from self._chunk()
        self._at = at

    def _expect(self, wanted: bytes, otherwise: str = "") -> Step:
        """Skip whitespace and one byte; any other JSON value than the wanted one has the error `otherwise`."""
        yield from self._space()
        if (found := self._byte()) != wanted:
            if otherwise and found in _STARTS + _OPEN:
                raise errors.invalid(otherwise)
            self._fail("unexpected character")
        self._at += 1

    def _name(self) -> Step:
        """Read a name, which must be `requests`."""
        yield from self._space()
        while (match := _NAME.match(self._buffer, self._at)) is None:
            if self._byte() != _QUOTE:
                self._fail("unexpected character")
            if len(self._buffer) - self._at > KEY_BYTES_MAX:
                self._fail("a name is too long")
            self._buffer += yield from self._chunk()
        try:
            name = _strings.decode(match[0])
        except UNREADABLE:
            self._fail("a name is not valid")
        if name != "requests":
            raise errors.invalid(f"{name[:SHOWN_CHARS_MAX]}: Extra inputs are not permitted")
        self._at = match.end()

    def _chunk(self) -> Generator[None, bytes, bytes]:
        if not (chunk := (yield)):
            self._fail("unexpected end of data")
        return chunk

    def _byte(self) -> bytes:
        return bytes(self._buffer[self._at : self._at + 1])

    def _drop(self) -> None:
        """Drop the bytes that were read."""
        del self._buffer[: self._at]
        self._dropped += self._at
        self._at = 0

    def _fail(self, reason: str) -> NoReturn:
        """The text is not JSON; bytes are counted from 1."""
        raise errors.invalid(f"The request body is not valid JSON: {reason} (byte {self._dropped + self._at + 1})")

    def _fail_inside(self, text: bytes) -> NoReturn:
        begin = self._dropped + 1
        raise errors.invalid(
            f"The request body is not valid JSON: requests.{len(self._places)}, from byte {begin} on: "
            f"{malformed.reason(text)}"
        )
