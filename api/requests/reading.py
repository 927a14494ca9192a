"""Reads JSON bodies, forms, queries and headers into models.

A fault is an `ApiError` 400 with the name of the field.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec
import orjson
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticKnownError

from tidemill.api import errors
from tidemill.api.requests import faults
from tidemill.configuration.settings import Settings
from tidemill.schemas import UNREADABLE
from tidemill.schemas.jsonl import nesting
from tidemill.schemas.resources.error import ApiError

M = TypeVar("M", bound=BaseModel)
B = TypeVar("B", bound="Body")

_DEEP: Final = re.compile(r"(\w+)\[(.*)\]\Z", re.DOTALL)
JSON_CHARS_MAX: Final = 512
PARTS_MAX: Final = 100_000
"""Arrays, objects, keys and commas of JSON that becomes objects: a parser holds the interpreter's lock."""
_WHOLE: Final = re.compile(r"([+-]?)(\d+)\Z", re.ASCII)
_NULL: Final = {"type": "null"}
_DIGITS_MAX: Final = 40
"""Digits of an integer that are read; a longer one is beyond every bound."""


def nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field that may be null, too."""
    about = {name: part for name, part in schema.items() if name in {"title", "description", "default"}}
    value = {name: part for name, part in schema.items() if name not in about}
    if _NULL in value.get("anyOf", ()):
        return schema
    return {"anyOf": [value, _NULL], **about}


class Body(BaseModel):
    """A JSON object; unknown fields are ignored, and null counts as absent."""

    model_config = ConfigDict(strict=True, frozen=True, use_attribute_docstrings=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Let each field be null that may be absent."""
        found = handler.resolve_ref_schema(handler(schema))
        for name, field in found.get("properties", {}).items():
            if name not in found.get("required", ()):
                found["properties"][name] = nullable(field)
        return found

    @classmethod
    def decoded(cls, content: bytes) -> Any:
        """Parse the JSON of a body.

        Raises:
            ApiError: 400, it is nested too deeply, or has too many parts.
            orjson.JSONDecodeError: It is not JSON.
        """
        return parsed(content)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, fields: Any) -> Any:
        return {k: v for k, v in fields.items() if v is not None} if isinstance(fields, dict) else fields


class Parameters(BaseModel):
    """Parameters of a query, headers, or fields of a form: each arrives as text."""

    model_config = ConfigDict(strict=True, frozen=True, use_attribute_docstrings=True)


def whole(text: Any) -> int:
    """Parse an integer."""
    if not isinstance(text, str) or (found := _WHOLE.match(text)) is None:
        raise faults.not_a("an integer")
    return int(found[1] + (found[2].lstrip("0")[:_DIGITS_MAX] or "0"))


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


def parsed(text: bytes) -> Any:
    """The value of JSON text.

    Raises:
        ApiError: 400, it is nested too deeply, or has too many parts.
        orjson.JSONDecodeError: It is not JSON.
    """
    _check_levels(text, nesting.DEPTH_MAX)
    if nesting.parts(text) > PARTS_MAX:
        many = f"more than {PARTS_MAX:,} arrays, objects, keys and commas"
        raise errors.invalid(f"The JSON body of your request is too complex: it has {many}.")
    return orjson.loads(text)


def check_json(text: bytes, levels_max: int) -> None:
    """Check that text is JSON in UTF-8, without making objects of it.

    Raises:
        ApiError: 400, it is not, or has more levels.
    """
    _check_levels(text, levels_max)
    try:
        text.decode()
        msgspec.json.decode(text, type=msgspec.Raw)
    except UNREADABLE as error:
        raise _not_json() from error


def _check_levels(text: bytes, levels_max: int) -> None:
    if nesting.exceeds(text, levels_max):
        raise errors.invalid(f"The JSON body of your request has more than {levels_max} levels.")


def _not_json() -> ApiError:
    return errors.invalid("We could not parse the JSON body of your request.")


WHOLE: Final = BeforeValidator(whole)
"""Marks an integer of a query; it follows the bounds: `Annotated[int, Field(ge=1, le=9), WHOLE]`."""


def settings_of(info: ValidationInfo) -> Settings:
    """The settings of the installation."""
    assert isinstance(info.context, Settings)
    return info.context


def body(model: type[B], content: bytes, settings: Settings) -> B:
    """Read a body, JSON; an empty one has no fields. The settings have some of the bounds, like the windows."""
    try:
        fields = model.decoded(content) if content.strip() else {}
    except orjson.JSONDecodeError as error:
        raise _not_json() from error
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
