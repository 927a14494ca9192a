"""Makes the error lines of invalid lines, and packs them into records."""

from collections.abc import Iterable, Iterator
from typing import Final

from tidemill.ingest.files.verdict import LineFault, Passed
from tidemill.schemas.jsonl import line
from tidemill.schemas.jsonl.lines import Line
from tidemill.schemas.log.codec import LineMark

RECORD_LINES_MAX: Final = 1024
RECORD_BYTES_MAX: Final = 256 * 1024
"""Bounds of a record: even with the marks of its lines it is far below a broker's limit."""

Faulty = tuple[int, bytes, LineFault]
"""The place of an invalid line, the line, and its fault."""

CHANGED: Final = LineFault(
    "invalid_request",
    "This line was refused for the models or limits at that time, which have changed since. Send it again.",
)
"""The fault of a line that had another one when the log got the verdict, and has none now."""
LOST: Final = LineFault("input_gone", "The input file was deleted while the batch was created.")
"""The fault of all lines of an input that is deleted between its check and its publication."""


def lost(batch_id: str, passed: Passed) -> Iterator[tuple[str, list[LineMark], bytes]]:
    """The error lines of all lines but copies, without their names: model, marks and value of each record."""
    for number, model in enumerate(passed.models):
        places = (place for place in range(passed.total) if not passed.numbers or passed.numbers[place] == number)
        asked = passed.copies.left_out_of((place, b"") for place in places)
        for marks, value in packed(batch_id, ((place, b"", LOST) for place, _ in asked)):
            yield model, marks, value


def refused(lines: Iterable[Line], first: int, faults: Iterable[Faulty], passed: Passed) -> Iterator[Faulty]:
    """The lines with faults by the verdict that the log has; `faults` are those by the present rules."""
    present = {place: fault for place, _, fault in faults}
    for place, found in enumerate(lines, first):
        if place in passed.faulty:
            yield place, found.data or b"", present.get(place, CHANGED)


def packed(batch_id: str, faults: Iterable[Faulty]) -> Iterator[tuple[list[LineMark], bytes]]:
    """The error lines of invalid lines: marks and value of each record."""
    marks: list[LineMark] = []
    texts: list[bytes] = []
    size = 0
    for place, data, fault in faults:
        text = line.unanswered(batch_id, place, line.custom_id_of(data), code=fault.code, message=fault.message)
        marks.append(LineMark(index=place, size=len(text), failed=True, attempts=0))
        texts.append(text)
        size += len(text)
        if len(marks) == RECORD_LINES_MAX or size >= RECORD_BYTES_MAX:
            yield marks, b"".join(texts)
            marks, texts, size = [], [], 0
    if marks:
        yield marks, b"".join(texts)
