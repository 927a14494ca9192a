"""Translates Pydantic's errors: the only place where a fault of a request gets OpenAI's message, param and code.

The forms are those of OpenAI's errors (`Invalid 'x': string too long. …`, code `string_above_max_length`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from tidemill.api import errors
from tidemill.schemas.resources.error import ApiError

TAG: Final = "="
"""Prefix of tags of union branches, which occur in the locations of Pydantic's errors but not in bodies."""

_FLOATS_FROM: Final = 2.0**63
"""From here on the parser reads an integer as a decimal."""
_EXPECTED: Final = {
    "string_type": "a string",
    "int_type": "an integer",
    "bool_type": "a boolean",
    "list_type": "an array of strings",
    "dict_type": "an object",
    "model_type": "an object",
    "bytes_type": "an object",
    "model_attributes_type": "an object",
}


def wrong(code: str, text: str) -> PydanticCustomError:
    """A fault with a code of its own: `Invalid 'param': text`."""
    return PydanticCustomError("said", "{text}", {"code": code, "text": text})


def none_of(supported: Sequence[str]) -> PydanticCustomError:
    """A string that is not among the supported ones."""
    return PydanticCustomError("none_of", "not supported", {"supported": tuple(supported)})


def not_a(expected: str) -> PydanticCustomError:
    """A value of another JSON type; `expected` comes with its article."""
    return PydanticCustomError("not_a", "another type", {"expected": expected})


def too_many(maximum: int) -> PydanticCustomError:
    """An object with too many fields."""
    return PydanticCustomError("too_long", "too many", {"max_length": maximum})


def above(maximum: int) -> PydanticCustomError:
    """A number above the maximum."""
    return PydanticCustomError("less_than_equal", "too large", {"le": maximum})


def below(minimum: int) -> PydanticCustomError:
    """A number below the minimum."""
    return PydanticCustomError("greater_than_equal", "too small", {"ge": minimum})


def cursor() -> PydanticCustomError:
    """A text that is not a cursor."""
    return PydanticCustomError("cursor", "no cursor")


def translated(error: ValidationError) -> ApiError:
    """The first fault as an error of the API."""
    return fault(error.errors(include_url=False)[0])


def fault(found: Mapping[str, Any]) -> ApiError:
    """One of Pydantic's errors as an error of the API."""
    param, kind, value = _param(found["loc"]), found["type"], found["input"]
    if kind == "int_type" and isinstance(value, float) and abs(value) >= _FLOATS_FROM:
        return _out_of_range(param, is_large=value > 0)
    if (expected := _EXPECTED.get(kind)) is not None:
        return errors.wrong_type(param, expected, value)
    say = _ERRORS.get(kind, _unusable)
    return say(param, value, found.get("ctx", {}))


def _out_of_range(param: str, *, is_large: bool) -> ApiError:
    """An integer of a body that is beyond every bound; the parser has made a decimal of it."""
    side, code = (
        ("above maximum", "integer_above_max_value") if is_large else ("below minimum", "integer_below_min_value")
    )
    return errors.invalid_param(param, f"integer {side} value.", code=code)


def _too_long(param: str, value: Any, context: Mapping[str, Any]) -> ApiError:
    say = errors.too_many if isinstance(value, dict) else errors.array_too_long
    return say(param, context["max_length"], len(value))


def _unusable(param: str, value: Any, context: Mapping[str, Any]) -> ApiError:
    del value, context
    return errors.invalid_param(param, "the value cannot be used.")


def _unlike(param: str, value: Any, context: Mapping[str, Any]) -> ApiError:
    del value
    expected = f"Expected a string that matches the pattern '{context['pattern']}'."
    return errors.invalid_param(param, f"string does not match pattern. {expected}")


def _empty(param: str, value: Any, context: Mapping[str, Any]) -> ApiError:
    del value, context
    fault = "empty string. Expected a string with minimum length 1."
    return errors.invalid_param(param, fault, code="empty_string")


_ERRORS: Final[dict[str, Callable[[str, Any, Mapping[str, Any]], ApiError]]] = {
    "missing": lambda param, _, __: errors.missing(param),
    "extra_forbidden": lambda param, _, __: errors.unknown_parameter(param),
    "string_too_long": lambda param, value, of: errors.too_long(param, of["max_length"], len(value)),
    "string_too_short": _empty,
    "string_pattern_mismatch": _unlike,
    "too_long": _too_long,
    "less_than_equal": lambda param, value, of: errors.too_large(param, of["le"], value),
    "greater_than_equal": lambda param, value, of: errors.too_small(param, of["ge"], value),
    "said": lambda param, _, of: errors.invalid_param(param, of["text"], code=of["code"]),
    "none_of": lambda param, value, of: errors.wrong_value(param, value, of["supported"]),
    "not_a": lambda param, value, of: errors.wrong_type(param, of["expected"], value),
    "cursor": lambda param, value, _: errors.unknown_cursor(value, param=param),
}
"""The error for each of Pydantic's types, made from the field, its value and the context of the error."""


def _param(places: Sequence[int | str]) -> str:
    """The path of a field: `source.from`, `part_ids[3]`, `metadata.key`."""
    param = ""
    for place in places:
        if isinstance(place, int):
            param += f"[{place}]"
        elif place != "[key]" and not place.startswith(TAG):
            param += f".{errors.shorten(place)}" if param else errors.shorten(place)
    return param
