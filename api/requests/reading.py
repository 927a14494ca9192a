"""Reads JSON bodies, forms, queries and headers into models.

A fault is an `ApiError` 400 with the name of the field.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticKnownError

from tidemill.api import errors
from tidemill.api.requests import faults
from tidemill.configuration.settings import Settings

M = TypeVar("M", bound=BaseModel)

_DEEP: Final = re.compile(r"(\w+)\[(.*)\]\Z", re.DOTALL)
JSON_CHARS_MAX: Final = 512
_WHOLE: Final = re.compile(r"[+-]?\d{1,18}\Z", re.ASCII)


class Body(BaseModel):
    """A JSON object; unknown fields are ignored, and null counts as absent."""

    model_config = ConfigDict(strict=True, frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, fields: Any) -> Any:
        return {k: v for k, v in fields.items() if v is not None} if isinstance(fields, dict) else fields


class Parameters(BaseModel):
    """Parameters of a query, headers, or fields of a form: each arrives as text."""

    model_config = ConfigDict(strict=True, frozen=True, use_attribute_docstrings=True)


def whole(text: Any) -> int:
    """Parse an integer."""
    if not isinstance(text, str) or _WHOLE.match(text) is None:
        raise faults.not_a("an integer")
    return int(text)


def json(text: Any) -> Any:
    """Parse a small JSON object."""
    if isinstance(text, str) and len(text) > JSON_CHARS_MAX:
        raise PydanticKnownError("string_too_long", {"max_length": JSON_CHARS_MAX})
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise faults.not_a("a JSON object")
    return found


WHOLE: Final = BeforeValidator(whole)
"""Marks an integer of a query; it follows the bounds: `Annotated[int, Field(ge=1, le=9), WHOLE]`."""


def settings_of(info: ValidationInfo) -> Settings:
    """The settings of the installation."""
    assert isinstance(info.context, Settings)
    return info.context


def body(model: type[M], content: bytes, settings: Settings) -> M:
    """Read a body, JSON; an empty one has no fields. The settings have some of the bounds, like the windows."""
    try:
        fields = orjson.loads(content) if content.strip() else {}
    except orjson.JSONDecodeError as error:
        raise errors.invalid("We could not parse the JSON body of your request.") from error
    if not isinstance(fields, dict):
        raise errors.invalid("The JSON body of your request must be an object.")
    return _validated(model, fields, settings)


def query(model: type[M], pairs: Iterable[tuple[str, str]]) -> M:
    """Read a query: `name=value`, and `name[key]=value` for maps; an empty `name=` counts as absent."""
    named: dict[str, Any] = {}
    maps: dict[str, dict[str, str]] = {}
    for name, value in pairs:
        if (match := _DEEP.match(name)) is not None:
            maps.setdefault(match[1], {})[match[2]] = value
        elif value:
            named[name] = value
    return _validated(model, named | maps)


def form(model: type[M], fields: Mapping[str, str]) -> M:
    """Read the fields of a form; an empty one counts as absent."""
    return _validated(model, {name: value for name, value in fields.items() if value})


def headers(model: type[M], found: Mapping[str, str]) -> M:
    """Read headers; fields name them by their aliases."""
    names = (field.alias or name for name, field in model.model_fields.items())
    return _validated(model, {name: value for name in names if (value := found.get(name.lower())) is not None})


def _validated(model: type[M], fields: dict[str, Any], settings: Settings | None = None) -> M:
    try:
        return model.model_validate(fields, context=settings)
    except ValidationError as error:
        raise faults.translated(error) from error
