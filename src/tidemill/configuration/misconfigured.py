"""Reports faults of settings, in words that say how to fix them."""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_settings import SettingsError

from tidemill import credentials

_WORDS: Final = {
    "Field required": "missing",
    "valid tuple": "list, as in [ … ]",
    "Tuple should": "List should",
    "valid dictionary": "table",
    "Decimal input": "Input",
    "valid decimal": "valid number",
    "an integer, float, string or Decimal object": "a number",
}
"""Python's words in messages of pydantic, and those of TOML."""
_MISSING: Final = {
    "url": 'missing; it is the base address of the server, as in "http://127.0.0.1:8000/v1"',
}
_UNKNOWN: Final = "extra_forbidden"
_LIKE: Final = ", did you mean {}?"
TABLE: Final = "{}"
"""The tag of a table that a setting may be; it is in pydantic's location, too."""


class NoJson(ValueError):
    """The text of a variable with a list or a table is not JSON."""

    def __init__(self, text: str, *, is_list: bool) -> None:
        super().__init__("it must be JSON, like " + ('["a", "b"]' if is_list else '{"a": 1}'))
        self.text = text


class Table(BaseModel):
    """A table of settings, each with its documentation below it; it refuses unknown settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, content: Any) -> Any:
        return marked(content, cls) if isinstance(content, dict) else content


def marked(content: Mapping[str, Any], table: type[BaseModel]) -> dict[str, Any]:
    """The content, with the most similar name behind each unknown one, which pydantic then reports (`faults`)."""
    names = unknown(content, table)
    numbers = {field.alias or name for name, field in table.model_fields.items() if _is_number(field.annotation)}
    return {names.get(name, name): _worded(value) if name in numbers else value for name, value in content.items()}


def _worded(value: Any) -> Any:
    """A number, or numbers, with words for booleans: pydantic takes them for 0 and 1."""
    match value:
        case bool():
            return str(value).lower()
        case list() | tuple():
            return [_worded(item) for item in value]
        case dict():
            return {name: _worded(item) for name, item in value.items()}
    return value


def _is_number(kind: Any) -> bool:
    """Whether values of a type are numbers, or have numbers, and no booleans."""
    parts = set(_parts(kind))
    return not parts.isdisjoint({int, float, Decimal}) and bool not in parts


def _parts(kind: Any) -> Iterator[Any]:
    yield kind
    for part in get_args(kind):
        yield from _parts(part)


def is_list(kind: Any) -> bool:
    """Whether a setting of this type is a list, or may be one."""
    if get_origin(kind) in {Annotated, Union, UnionType}:
        return any(map(is_list, get_args(kind)))
    return get_origin(kind) is tuple


def unknown(content: Iterable[str], table: type[BaseModel]) -> dict[str, str]:
    """The names of settings that a table does not have, each with the most similar one."""
    known = _names(table)
    near = {name: nearest(name, known) for name in content if name not in known}
    return {name: f"{name}{_LIKE.format(one) if one else ''}" for name, one in near.items()}


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """The most similar known name; None if none is as similar as `likeness`, from 0 to 1 (equal)."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)), None)


def unquoted(name: str, entries: Any, table: type[BaseModel]) -> Iterator[str]:
    """Find names with a dot that lack quotes, which TOML reads as a table in a table.

    Args:
        name: Name of the table, such as `models`.
        entries: Its content.
        table: The type of its entries.

    Yields:
        A fault for each name.
    """
    known = _names(table)
    for first, entry in entries.items() if isinstance(entries, dict) else ():
        for key, below in entry.items() if isinstance(entry, dict) else ():
            if isinstance(below, dict) and key not in known and not nearest(key, known):
                whole = ".".join((first, key, *_rest(below, known)))
                yield f'{name}.{whole}: a name with a dot needs quotes: [{name}."{whole}"]'


def parsed(content: bytes, named: Iterable[str]) -> dict[str, Any]:
    """Parse a TOML file; ignores a byte order mark.

    Args:
        content: The file.
        named: Tables whose keys are names chosen by the user.

    Raises:
        ValueError: The file is not TOML, or not UTF-8; the text names the line.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"it is not UTF-8 (at line {line}): save it as UTF-8") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{error}{_hint(text, str(error), named)}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        # Python refuses to read a number of thousands of digits.
        raise ValueError("a number has too many digits") from error


def faults(error: ValidationError, *path: str) -> list[str]:
    """The faults that a validation of the table at a path found, one for each setting."""
    found: dict[str, str] = {}
    all_of_them = error.errors(include_url=False, include_input=False)
    misspelt = [(fault["loc"][:-1], str(fault["loc"][-1])) for fault in all_of_them if fault["type"] == _UNKNOWN]
    for fault in all_of_them:
        parts = [*path, *(str(part) for part in fault["loc"] if part != TABLE)]
        *above, last = parts or [""]
        # For a setting of several types, the last part is the type that pydantic tried.
        is_union = (last == "bool" or last.startswith("function-after[")) and len(fault["loc"]) > 1
        place = ".".join(above if is_union else parts)
        # pydantic does not count faulty items, so a list of them also seems too short.
        if fault["type"] == "too_short" and any(other.startswith(f"{place}.") for other in found):
            continue
        text = fault["msg"].removeprefix("Value error, ").partition(" or instance of")[0]
        if fault["type"] == "missing":
            if any(at == fault["loc"][:-1] and name.endswith(_LIKE.format(last)) for at, name in misspelt):
                continue
            text = _MISSING.get(last, text)
        if fault["type"] == _UNKNOWN:
            found[place] = f"{'.'.join(above)}{': ' if above else ''}unknown setting {last}"
            continue
        for old, new in _WORDS.items():
            text = text.replace(old, new)
        found[place] = f"{place}{': ' if place else ''}{text}"
    return "\n".join(found.values()).split("\n")


def described(error: ValidationError | SettingsError, file: Path, prefix: str) -> list[str]:
    """The faults of all settings, each with its variable if that is set, which takes precedence, or the file."""
    if isinstance(error, ValidationError):
        return [_placed(fault, file, prefix) for fault in faults(error)]
    # A list or a table in a variable; pydantic's message has the name of the setting, of which this may be a part.
    setting = re.search(r'"(\w+)"', str(error))
    cause = error.__cause__
    if setting is None or not isinstance(cause, NoJson):
        return [str(error)]
    first = f"{prefix}{setting[1].upper()}"
    found = [
        name
        for name, text in sorted(os.environ.items())
        if f"{name.upper()}__".startswith(f"{first}__") and credentials.stripped(text) == cause.text
    ]
    return [f"{' or '.join(found) or first}: {cause}"]


def _placed(fault: str, file: Path, prefix: str) -> str:
    names = {name.upper() for name in os.environ}
    parts = fault.partition(": ")[0].upper().split(".")
    paths = [prefix + "__".join(parts[:count]) for count in range(len(parts), 0, -1)]
    if found := next((path for path in paths if path in names), None):
        return f"{found}: {fault}"
    # Several variables may make up a table.
    is_set = any(name.startswith(f"{paths[-1]}__") for name in names)
    return f"{paths[-1] if is_set else file}: {fault}"


def _names(table: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in table.model_fields.items()}


def _rest(table: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    """Further parts of a dotted name, which TOML parsed as nested tables with a single entry each."""
    while len(table) == 1:
        key, below = next(iter(table.items()))
        if key in known or not isinstance(below, dict):
            return
        yield key
        table = below


def _hint(text: str, message: str, named: Iterable[str]) -> str:
    """How to fix a heading whose name needs quotes."""
    number = message.rpartition("at line ")[2].partition(",")[0]
    line = text.split("\n")[int(number) - 1] if number.isdecimal() else ""
    table, _, name = line.strip().strip("[]").partition(".")
    if table not in named or re.fullmatch(r"""["'].*|[A-Za-z0-9_.-]*""", name):
        return ""
    return f': a name with other characters than letters, digits, - and _ needs quotes, as in [{table}."a/b"]'
