"""The verdict on an input file: its models and lines, or its faults."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Annotated, Final

from pydantic import GetPydanticSchema, PlainSerializer
from pydantic_core.core_schema import bytes_schema, no_info_after_validator_function

from tidemill.ingest.files.packing import Placed
from tidemill.schemas.bitmap import Bitmap
from tidemill.schemas.bounds import ERRORS_BYTES_MAX, ERRORS_MAX
from tidemill.schemas.jsonl.lines import LINE_BYTES_MAX
from tidemill.schemas.log.messages import Accepted
from tidemill.schemas.resources.batch import BatchError, error_bytes
from tidemill.schemas.resources.by_model import ModelLines
from tidemill.wording import counted

FAULTS_MAX: Final = ERRORS_MAX
"""Entries of `errors.data`; the last one says how many more there are."""
SHOWN_CHARS_MAX: Final = 64
"""Characters of the user's text that a message quotes: a thousand messages have to fit into one log record."""
INTERNAL_FAULT: Final = BatchError(
    code="server_error",
    message="The server had an error while checking the input file. Please create the batch again.",
)


Places = Annotated[
    Bitmap,
    GetPydanticSchema(lambda *_: no_info_after_validator_function(Bitmap, bytes_schema())),
    PlainSerializer(lambda places: bytes(places.content), return_type=bytes),
]
"""The indices of lines; its bytes in a kept verdict."""


@dataclass(frozen=True, slots=True)
class Copies:
    """The copies of a batch."""

    places: Places = field(default_factory=Bitmap)
    by_model: Counter[int] = field(default_factory=Counter)
    """The number of copies by the number of their model."""

    @property
    def count(self) -> int:
        """Their number."""
        return self.by_model.total()

    def left_out_of(self, placed: Iterable[Placed]) -> Iterable[Placed]:
        """The lines that are not copies."""
        return ((place, data) for place, data in placed if place not in self.places) if self.by_model else placed


NO_COPIES: Final = Copies()


@dataclass(frozen=True, kw_only=True)
class Passed:
    """The file has no faults, or only such that fail a line alone (`Endpoint.is_anthropics`)."""

    total: int
    """Its lines without blank ones."""
    models: tuple[str, ...]
    """In the order of their first lines."""
    numbers: bytes = b""
    """For each line, the place of its model in `models`; empty if there is only one."""
    copies: Copies = NO_COPIES
    faulty: frozenset[int] = frozenset()
    """The indices of lines with faults; they count as lines of the first model."""
    line_bytes_max: int = LINE_BYTES_MAX
    """A longer line has a fault."""

    @property
    def lines(self) -> Mapping[str, int]:
        """The number of lines of each model."""
        if len(self.models) == 1:
            return {self.models[0]: self.total}
        return {model: self.numbers.count(number) for number, model in enumerate(self.models)}


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The file has faults."""

    errors: tuple[BatchError, ...]


class LineFault(Exception):
    """A fault of a line or of the whole file."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class Listing:
    """The faults of lines: as many as a verdict lists, and the number of all."""

    def __init__(self) -> None:
        self.errors: list[BatchError] = []
        self.count = 0
        self._bytes = 0

    def note(self, fault: LineFault, number: int) -> None:
        """Add the fault of the line with this number."""
        self.count += 1
        if self.count <= FAULTS_MAX and self._bytes <= ERRORS_BYTES_MAX:
            found = entry(fault, number)
            self._bytes += error_bytes(found)
            self.errors.append(found)


def listed(errors: list[BatchError], count: int) -> list[BatchError]:
    """As many errors as fit, in number and in bytes; the last one says how many are left out."""
    sizes = accumulate(map(error_bytes, errors))
    if count <= FAULTS_MAX and count == len(errors) and max(sizes, default=0) <= ERRORS_BYTES_MAX:
        return errors
    room = ERRORS_BYTES_MAX - error_bytes(_more(count))
    fit = sum(size <= room for size in accumulate(map(error_bytes, errors[: FAULTS_MAX - 1])))
    return [*errors[:fit], _more(count - fit)]


def _more(count: int) -> BatchError:
    return BatchError(code="too_many_errors", message=f"Not listed: {counted(count, 'more error')}.")


def accepted(batch_id: str, passed: Passed, at: int) -> Accepted:
    """The verdict on a file without faults, as the log has it."""
    copies = passed.copies
    if len(passed.models) == 1:
        return Accepted(batch_id=batch_id, total=passed.total, model=passed.models[0], copies=copies.count, at=at)
    models = tuple(
        ModelLines(model=model, lines=lines, copies=copies.by_model[number])
        for number, (model, lines) in enumerate(passed.lines.items())
    )
    return Accepted(batch_id=batch_id, total=passed.total, models=models, copies=copies.count, at=at)


def missing_file(file_id: str, project: str) -> Failed:
    """The verdict on a file that does not exist, or belongs to another project."""
    text = f"Cannot find file {shown(file_id)}, or organization {shown(project)} does not have access to it."
    return Failed(errors=(BatchError(code="invalid_request", message=text, param="file_id"),))


def entry(fault: LineFault, line: int | None = None) -> BatchError:
    """A fault as an entry of `errors.data`."""
    return BatchError(code=fault.code, message=fault.message, param=fault.param, line=line)


def shown(text: str) -> str:
    """A text of the user, cut to the length that a message quotes."""
    return text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "…"
