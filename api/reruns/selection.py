"""Selects the lines of a rerun."""

from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from tidemill.api.batches.report import is_refused
from tidemill.api.requests import faults
from tidemill.api.requests.fields import OneOf
from tidemill.api.requests.reading import Body
from tidemill.schemas.jsonl import line

CODES_MAX: Final = 100
CODE_CHARS_MAX: Final = 100
STATUS_MAX: Final = 999


class Kind(StrEnum):
    """Kinds of lines."""

    UNFINISHED = "unfinished"
    """Failed, expired and cancelled lines."""
    FAILED = "failed"
    """Failed lines, except lines of a stream that are not valid requests."""
    EXPIRED = "expired"
    """Lines that did not run before the deadline."""
    CANCELLED = "cancelled"
    """Lines that did not run before a cancel."""
    ALL = "all"
    """All valid requests."""
    CODES = "codes"
    """Lines with one of some error codes."""


_UNRUN: Final = {line.EXPIRED[0]: Kind.EXPIRED, line.CANCELLED[0]: Kind.CANCELLED}


class Selection(BaseModel):
    """The lines that a rerun runs."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    codes: tuple[str, ...] = ()
    """Codes of errors, or HTTP statuses; sorted."""

    def includes(self, code: str, status: int | None) -> bool:
        """Whether it includes a line of the error file, by its code and the HTTP status of its answer, if any."""
        match self.kind:
            case Kind.ALL | Kind.UNFINISHED:
                return not is_refused(code, status)
            case Kind.CODES:
                return code in self.codes or (status is not None and str(status) in self.codes)
            case _:
                unrun = _UNRUN.get(code) if status is None else None
                return (unrun or Kind.FAILED) is self.kind and not is_refused(code, status)


_Text = Annotated[str, Field(max_length=CODE_CHARS_MAX)]
_Status = Annotated[int, Field(ge=0, le=STATUS_MAX)]


def _code_text(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value <= STATUS_MAX:
            raise faults.below(0) if value < 0 else faults.above(STATUS_MAX)
        return str(value)
    if not isinstance(value, str):
        raise faults.not_a("a string or an integer")
    return value


def _check_codes(codes: list[str]) -> list[str]:
    if not codes:
        raise faults.wrong("empty_array", "at least one code is needed.")
    return codes


def _check_text(value: Any) -> Any:
    if not isinstance(value, str):
        raise faults.not_a("a string or an object")
    return value


def _branch(value: Any) -> str:
    return _CODES if isinstance(value, dict | Codes) else _NAME


class Codes(Body):
    """Lines with some error codes."""

    codes: Annotated[
        list[Annotated[_Text, BeforeValidator(_code_text, json_schema_input_type=_Text | _Status)]],
        Field(max_length=CODES_MAX, fail_fast=True, json_schema_extra={"minItems": 1}),
        AfterValidator(_check_codes),
    ]
    """Codes of errors as `/errors` has them, or HTTP statuses."""


_NAME: Final = f"{faults.TAG}name"
_CODES: Final = f"{faults.TAG}codes"
Lines = Annotated[
    Annotated[
        str, OneOf([kind for kind in Kind if kind is not Kind.CODES]), BeforeValidator(_check_text), Tag(_NAME)
    ]
    | Annotated[Codes, Tag(_CODES)],
    Discriminator(_branch),
]
"""A kind, or `{"codes": [429, "context_length_exceeded"]}`."""


def of(lines: str | Codes) -> Selection:
    """The selection that a request describes."""
    if isinstance(lines, Codes):
        return Selection(kind=Kind.CODES, codes=tuple(sorted(set(lines.codes))))
    return Selection(kind=Kind(lines))
