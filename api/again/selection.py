"""Which lines of a batch that is over are wanted once more."""

from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from tidemill.api import draft, errors
from tidemill.schemas import line

CODES_MAX: Final = 100
CODE_CHARS_MAX: Final = 100


class Kind(StrEnum):
    """The lines that have a name."""

    FAILED = "failed"
    """Those that failed, but for lines of a stream that are no requests at all."""
    EXPIRED = "expired"
    """Those that the deadline has kept from being run."""
    CANCELLED = "cancelled"
    """Those that a cancel has kept from being run."""
    ALL = "all"
    """All but those that are no requests."""
    CODES = "codes"
    """Those whose error has one of some codes."""


_UNRUN: Final = {line.EXPIRED[0]: Kind.EXPIRED, line.CANCELLED[0]: Kind.CANCELLED}


class Selection(BaseModel):
    """What is wanted of a batch's lines."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    codes: tuple[str, ...] = ()
    """Codes of errors, or HTTP statuses; sorted."""

    def takes(self, code: str, status: int | None) -> bool:
        """Whether a line of the error file is wanted.

        Args:
            code: What it failed with.
            status: The HTTP status of the answer; None where there was none.
        """
        match self.kind:
            case Kind.ALL:
                return not _is_refused(code, status)
            case Kind.CODES:
                return code in self.codes or (status is not None and str(status) in self.codes)
            case _:
                unrun = _UNRUN.get(code) if status is None else None
                return (unrun or Kind.FAILED) is self.kind and not _is_refused(code, status)


def _is_refused(code: str, status: int | None) -> bool:
    """Whether the line was no request: one such line would fail the whole new batch."""
    return status is None and code in line.REFUSALS


def parse(value: Any, param: str = "lines") -> Selection:
    """Read what a client says: a name, or `{"codes": [429, "context_length_exceeded"]}`.

    Raises:
        ApiError: 400 with the field's name.
    """
    if value is None:
        raise errors.missing(param)
    if isinstance(value, dict):
        return Selection(kind=Kind.CODES, codes=_codes(value.get("codes"), f"{param}.codes"))
    if not isinstance(value, str):
        raise errors.wrong_type(param, "a string or an object", value)
    names = [kind for kind in Kind if kind is not Kind.CODES]
    return Selection(kind=Kind(draft.choice({param: value}, param, names)))


def _codes(value: Any, param: str) -> tuple[str, ...]:
    if value is None:
        raise errors.missing(param)
    if not isinstance(value, list):
        raise errors.wrong_type(param, "an array of codes", value)
    if not value:
        raise errors.invalid(f"Invalid '{param}': at least one code is needed.", param=param, code="empty_array")
    if len(value) > CODES_MAX:
        raise errors.array_too_long(param, CODES_MAX, len(value))
    codes = set()
    for place, code in enumerate(value):
        if not isinstance(code, str | int) or isinstance(code, bool):
            raise errors.wrong_type(f"{param}[{place}]", "a string or an integer", code)
        codes.add(str(code)[:CODE_CHARS_MAX])
    return tuple(sorted(codes))
