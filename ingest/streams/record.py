"""The lines that a record of the intake brings."""

import dataclasses
from typing import Final

from tidemill.kafka.partitions.owner import Record
from tidemill.schemas.log import intake
from tidemill.schemas.log.intake import IntakeError

RECORD_BYTES_MAX: Final = 1 << 20
"""Of its value: what a broker takes, whose bound a compressed record passes by."""
RECORD_LINES_MAX: Final = 16_384
"""Blank lines included. A record of `RECORD_BYTES_MAX` has no more requests, however short they are."""
REQUEST_BYTES_MIN: Final = 64
"""A shorter line is no request: method, url and the names of the fields alone are longer."""
SHORT_LINES_MAX: Final = 1_000
"""Lines of a record that may be shorter, and become error lines, each several times as long as itself."""


def shown(record: Record) -> Record:
    """The record as an operator may see it: without its credential."""
    kept = tuple((name, content) for name, content in record.headers if name.lower() != intake.AUTHORIZATION)
    return dataclasses.replace(record, headers=kept)


def bounded(value: bytes) -> list[bytes]:
    """The lines of a record, as `split`.

    Raises:
        IntakeError: It has more than may be taken.
    """
    if len(value) > RECORD_BYTES_MAX:
        raise IntakeError(f"it is larger than {RECORD_BYTES_MAX} bytes")
    if value.count(b"\n") >= RECORD_LINES_MAX:
        raise IntakeError(f"it has more than {RECORD_LINES_MAX} lines")
    lines = split(value)
    if sum(len(line) < REQUEST_BYTES_MIN for line in lines) > SHORT_LINES_MAX:
        raise IntakeError(f"more than {SHORT_LINES_MAX} of its lines are too short to be requests")
    return lines


def split(value: bytes) -> list[bytes]:
    """The lines of a record, without the whitespace around them; blank ones are left out."""
    return [line for found in value.split(b"\n") if (line := found.strip(b" \t\r"))]


def joined_bytes(lines: list[bytes]) -> int:
    """What the lines take in a file, each with its newline."""
    return sum(map(len, lines)) + len(lines)
