"""The look at the first line of a batch file while it is uploaded; every line is checked later, by ingest."""

import msgspec

FIRST_LINE_BYTES_MAX = 8 << 20
"""A first line above this is for ingest to judge."""
BOM = b"\xef\xbb\xbf"
NOT_JSONL = "Invalid file format for Batch API. Must be .jsonl"
NOT_UTF8 = "Invalid file for Batch API. Must be utf-8 encoded"

_WHITESPACE = b" \t\n\r\f\v"
_valid = msgspec.json.Decoder(msgspec.Raw)
"""Reads JSON to its end and makes nothing of it: 8 MiB of brackets are 20 ms, a second where they become lists."""


class Opening:
    """Gathers a file's first line that is not blank, from chunks of any size."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._fault: str | None = None
        self.is_done = False
        """Whether more of the file would change nothing."""

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk of the file."""
        if self.is_done:
            return
        if not self._held:
            # There may be a hundred million blank lines.
            chunk = chunk.lstrip(_WHITESPACE)
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._held += chunk[start:end]
            line, start = bytes(self._held), end + 1
            self._held.clear()
            if self._judge(line):
                return
        self._held += chunk[start:]
        if len(self._held) > FIRST_LINE_BYTES_MAX:
            self._held.clear()
            self.is_done = True

    def fault(self) -> str | None:
        """What is wrong with the file, once it is whole; None where nothing is."""
        if not self.is_done and not self._judge(bytes(self._held)):
            return NOT_JSONL
        return self._fault

    def _judge(self, line: bytes) -> bool:
        """Whether the line decides; a blank one does not."""
        text = line.removeprefix(BOM).strip()
        if not text:
            return False
        self.is_done = True
        try:
            text.decode()
            _valid.decode(text)
        except UnicodeDecodeError:
            self._fault = NOT_UTF8
        except (msgspec.DecodeError, RecursionError):
            self._fault = NOT_JSONL
        return True
