"""Says where and why a text that a parser rejected is not JSON."""

import re
from typing import Final

import msgspec
import orjson

from tidemill.schemas.jsonl.lines import BOM

SHOWN_CHARS_MAX: Final = 16
LONG_BYTES: Final = 64 * 1024
"""The longest text that is parsed into objects to find its fault; longer text is only scanned."""
MEND: Final = "save it as UTF-8 (`iconv -f %s -t UTF-8 FILE`)"


def _encoded(name: str) -> str:
    return f"the content is encoded as {name}; {MEND % name}"


SIGNATURES: Final = (
    (BOM, "a byte order mark is before the JSON; it may only be at the start of the file"),
    (b"\x1f\x8b", "the content is compressed with gzip; upload the text itself"),
    (b"PK\x03\x04", "the content is a zip archive, as .zip, .xlsx and .docx files are; upload JSON lines"),
    (b"\xff\xfe\0\0", _encoded("UTF-32")),
    (b"\0\0\xfe\xff", _encoded("UTF-32")),
    (b"{\0\0\0", _encoded("UTF-32LE")),
    (b"\0\0\0{", _encoded("UTF-32BE")),
    (b"\xff\xfe", _encoded("UTF-16")),
    (b"\xfe\xff", _encoded("UTF-16")),
    (b"{\0", _encoded("UTF-16LE")),
    (b"\0{", _encoded("UTF-16BE")),
)
"""First bytes of other formats; a longer signature precedes its own beginning."""
WORDS: Final = {
    "unexpected end of data": "the line ends before its JSON does; a request must be on one line",
    "Input data was truncated": "the JSON breaks off",
    "unexpected content after document": "more text follows the JSON",
}
"""Clearer words than those of the parsers."""

ARRAY: Final = "It begins with `[`; each line is a JSON object, with no brackets or commas around."
ENDS: Final = ("unexpected end of data", "Input data was truncated")

_valid: Final = msgspec.json.Decoder(msgspec.Raw)
_BYTE: Final = re.compile(r"(?:JSON is malformed: )?(.*) \(byte (\d+)\)\Z")


def reason(text: bytes) -> str:
    """The place and reason of the fault: `Column 20: …; found '…'`; columns and bytes are counted from 1."""
    for signature, said in SIGNATURES:
        if text.startswith(signature):
            return f"Byte 1: {said}."
    try:
        shown = text.decode()
    except UnicodeDecodeError as error:
        return f"Byte {error.start + 1}: {_not_utf8(text[error.start : error.start + 1])}."
    if shown.strip() == "[":
        return ARRAY
    return _in_long(text) if len(text) > LONG_BYTES else _in_short(shown)


def _not_utf8(byte: bytes) -> str:
    """Suggests Windows-1252, with the character, if that encoding has the byte."""
    char = byte.decode("cp1252", "replace")
    if not char.isprintable() or char == "\ufffd":
        return f"0x{byte.hex()} is not UTF-8; save the content as UTF-8"
    return f"0x{byte.hex()} is not UTF-8; if it should be '{char}', it is Windows-1252: {MEND % 'CP1252'}"


def _in_short(text: str) -> str:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return _fault(f"Column {error.pos + 1}", error.msg, text[error.pos : error.pos + SHOWN_CHARS_MAX])
    return "It is too long to be read."


def _in_long(text: bytes) -> str:
    try:
        _valid.decode(text)
    except RecursionError:
        return "It is nested too deeply."
    except ValueError as error:
        if (match := _BYTE.match(str(error))) is None:
            return _fault("At its end", str(error), "")
        at = int(match[2])
        return _fault(f"Byte {at + 1}", match[1], text[at : at + SHOWN_CHARS_MAX].decode(errors="replace"))
    return "It is too long to be read."


def _fault(place: str, words: str, found: str) -> str:
    shown = f"; found {orjson.dumps(found).decode()}" if found and words not in ENDS else ""
    return f"{place}: {WORDS.get(words, words)}{shown}."
