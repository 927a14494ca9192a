"""Checks the first line of a batch file during the upload; ingest checks every line later."""

import codecs

import msgspec

from tidemill.schemas import UNREADABLE
from tidemill.schemas.jsonl import malformed
from tidemill.schemas.jsonl.lines import BOM

CHECKED_BYTES_MAX = 64 * 1024
"""Only this much of a long first line is checked: parsing 8 MiB would delay all other requests."""
NOT_JSONL = "Invalid file format for Batch API. Must be .jsonl"
NOT_UTF8 = "Invalid file for Batch API. Must be utf-8 encoded"

_WHITESPACE = b" \t\n\r\f\v"
_NUMBER = b"+-.eE0123456789"
_TRUNCATED = "Input data was truncated"
_valid = msgspec.json.Decoder(msgspec.Raw)
"""Parses JSON without making objects of it."""


class FirstLine:
    """Checks the first line that is not blank, from chunks of any size."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._number = 1
        """Number of the buffered line."""
        self._fault: str | None = None
        self.is_done = False
        """Whether the check is complete."""

    def feed(self, chunk: bytes) -> None:
        """Add the next chunk of the file."""
        if self.is_done:
            return
        if not self._held:
            # There may be a hundred million blank lines.
            whole, chunk = chunk, chunk.lstrip(_WHITESPACE)
            self._number += whole.count(b"\n", 0, len(whole) - len(chunk))
        start = 0
        while (end := chunk.find(b"\n", start, start + CHECKED_BYTES_MAX)) >= 0:
            self._held += chunk[start:end]
            if self._check():
                return
            self._number += 1
            start = end + 1
        self._held += chunk[start : start + CHECKED_BYTES_MAX]
        if len(self._held) >= CHECKED_BYTES_MAX:
            self._check(is_whole=False)

    def fault(self) -> str | None:
        """The fault of the whole file; None if there is none."""
        if not self.is_done and not self._check():
            return f"{NOT_JSONL}: the file has no line that is not blank."
        return self._fault

    def _check(self, *, is_whole: bool = True) -> bool:
        """Check the buffered line; False if it is blank."""
        text = bytes(self._held).removeprefix(BOM).strip()
        self._held.clear()
        if not text and is_whole:
            return False
        self.is_done = True
        try:
            _, size = codecs.utf_8_decode(text, "strict", is_whole)
            # A cut number may look complete; the parser recognises any other cut.
            text = text if is_whole else text[:size].rstrip(_NUMBER)
            _valid.decode(text)
        except UnicodeDecodeError:
            self._fault = self._described(NOT_UTF8, text)
        except UNREADABLE as error:
            if is_whole or str(error) != _TRUNCATED:
                self._fault = self._described(NOT_JSONL, text)
        return True

    def _described(self, fault: str, text: bytes) -> str:
        return f"{fault}: line {self._number} is not JSON. {malformed.reason(text)}"
