"""What is wrong with the content of a file of settings, in words that say how to mend it; nothing is read here."""

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

_WORDS: Final = {
    "Field required": "missing",
    "valid tuple": "list, as in [ … ]",
    "Tuple should": "List should",
    "valid dictionary": "table",
}
"""Words of pydantic that are of Python, and those of TOML."""
_MISSING: Final = {
    "backends": 'missing; it names the servers, as in backends = [{ url = "http://127.0.0.1:8000/v1" }]',
    "url": 'missing; it is the base address of the server, as in "http://127.0.0.1:8000/v1"',
}
_UNION: Final = ("bool", "function-after[")
"""Where a setting may be one thing or another, pydantic's places end with what it has tried."""


class Table(BaseModel):
    """A table of settings; each has its documentation below it, and none is there that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _spelt(cls, content: Any) -> Any:
        if isinstance(content, dict) and (said := unknown(content, cls)):
            raise ValueError(said)
        return content


def unknown(content: Iterable[str], table: type[BaseModel]) -> str:
    """The settings that a table does not have, each with the nearest one that it has; empty where it has all."""
    known = _names(table)
    near = {name: nearest(name, known) for name in content if name not in known}
    return "; ".join(f"there is no setting {name}{f', but {one}' if one else ''}" for name, one in near.items())


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """The known name that was meant; None where none is as near as that, 1 is the same."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)), None)


def unquoted(name: str, entries: Any, table: type[BaseModel]) -> Iterator[str]:
    """Names of models or projects with a dot that stand without quotes, which TOML reads as a table in a table.

    Args:
        name: Of the table of them.
        entries: What stands in it.
        table: What each of them is.
    """
    known = _names(table)
    for first, entry in entries.items() if isinstance(entries, dict) else ():
        for key, below in entry.items() if isinstance(entry, dict) else ():
            if isinstance(below, dict) and key not in known and not nearest(key, known):
                whole = ".".join((first, key, *_rest(below, known)))
                yield f'{name}.{whole}: a name with a dot stands in quotes: [{name}."{whole}"]'


def parsed(content: bytes, named: Iterable[str]) -> dict[str, Any]:
    """The content of a TOML file; a byte order mark is passed over.

    Args:
        content: The file.
        named: The tables whose keys are names that users choose.

    Raises:
        ValueError: It is no TOML, or not UTF-8; the text has the line.
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


def faults(error: ValidationError) -> list[str]:
    """What a validation has found, a line for each setting."""
    found: dict[str, str] = {}
    for fault in error.errors(include_url=False, include_input=False):
        *above, last = fault["loc"] or ("",)
        is_union = str(last).startswith(_UNION) and len(above) > 1
        place = ".".join(map(str, above if is_union else fault["loc"]))
        # pydantic counts an item of a list that has a fault as none.
        if fault["type"] == "too_short" and any(other.startswith(f"{place}.") for other in found):
            continue
        text = fault["msg"].removeprefix("Value error, ").partition(" or instance of")[0]
        if fault["type"] == "missing":
            text = _MISSING.get(str(last), text)
        for old, new in _WORDS.items():
            text = text.replace(old, new)
        found[place] = f"{place}{': ' if place else ''}{text}"
    return list(found.values())


def _names(table: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in table.model_fields.items()}


def _rest(table: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    """The rest of a name with several dots: tables that hold nothing but one other."""
    while len(table) == 1:
        key, below = next(iter(table.items()))
        if key in known or not isinstance(below, dict):
            return
        yield key
        table = below


def _hint(text: str, said: str, named: Iterable[str]) -> str:
    """What to do about a heading whose name needs quotes."""
    number = said.rpartition("at line ")[2].partition(",")[0]
    line = text.split("\n")[int(number) - 1] if number.isdecimal() else ""
    table, _, name = line.strip().strip("[]").partition(".")
    if table not in named or not name or name.startswith(('"', "'")):
        return ""
    return f': a name that is not all letters, digits, - and _ stands in quotes, as in [{table}."a/b"]'
