"""Changes of the catalog, checked against its contents. No I/O."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from tidemill.configuration.catalog import (
    MODEL,
    SERVER,
    Contents,
    Entry,
    Fold,
    Key,
    checked,
    kind_of,
    name_of,
    settings_by_key,
)
from tidemill.configuration.misconfigured import nearest
from tidemill.configuration.servers import KEY_PREFIX, Model, Server
from tidemill.schemas import fingerprint_of
from tidemill.wording import listed

NAMES_MAX: Final = 100_000
"""Names in the catalog, with those removed, which it keeps for their prices and their history."""
ENTRIES_MAX: Final = 10_000
"""Most servers and models at a time, without removed ones."""

Wanted = Mapping[Key, Mapping[str, Any] | None]
"""Settings by key; None removes an entry."""


class Difference(BaseModel):
    """The change of one server or model."""

    key: Key
    before: dict[str, Any] | None
    """The present values of the settings that change; None if the entry is new."""
    after: dict[str, Any] | None
    """The new values of these settings; None if the entry is removed."""


def planned(
    contents: Contents, wanted: Wanted, *, author: str, at: int, of_file: bool = False
) -> dict[Key, Entry]:
    """The entries that a change has to write; unchanged ones are left out.

    Args:
        contents: The present catalog.
        wanted: The new settings by key; None removes an entry.
        author: Id of the key, or name of the file.
        at: Unix time.
        of_file: Whether the entries come from a settings file.

    Raises:
        ValueError: The result would contradict itself; the text begins with the path of the setting.
    """
    settings = _long_form(contents, wanted)
    found: dict[Key, Entry] = {}
    for key, new in settings.items():
        old = contents.entries.get(key)
        is_of_file = of_file or (old is not None and not old.removed and old.of_file)
        if new is None:
            if old is not None and not old.removed:
                found[key] = Entry(settings=old.settings, removed=True, author=author, at=at)
        elif old is None or old.present != new or old.of_file != is_of_file:
            found[key] = Entry(settings=dict(new), of_file=is_of_file, author=author, at=at)
    _check(contents, found)
    return found


def _long_form(contents: Contents, wanted: Wanted) -> dict[Key, Mapping[str, Any] | None]:
    """Check each entry by itself, and name the servers of the short form."""
    parsed = {key: checked(key, settings) for key, settings in wanted.items() if settings is not None}
    servers = {name_of(key): one for key, one in parsed.items() if isinstance(one, Server)}
    models = {name_of(key): one for key, one in parsed.items() if isinstance(one, Model)}
    kept = {name: one for name, one in contents.serving.servers.items() if SERVER + name not in wanted}
    found: dict[Key, Mapping[str, Any] | None] = {key: None for key, one in wanted.items() if one is None}
    return found | settings_by_key(servers, models, kept)


def check_keys(contents: Contents, entries: Mapping[Key, Entry]) -> None:
    """Check that a change names no variables but those with keys of servers.

    Raises:
        ValueError: It does.
    """
    known = {entry.settings.get("api_key_env") for entry in contents.entries.values()}
    for key, entry in entries.items():
        name = str(entry.settings.get("api_key_env", KEY_PREFIX))
        if not name.startswith(KEY_PREFIX) and name not in known:
            raise ValueError(
                f"servers.{name_of(key)}.api_key_env: a variable that the settings file of the service does not "
                f"name begins with {KEY_PREFIX}"
            )


def after(contents: Contents, entries: Mapping[Key, Entry]) -> Contents:
    """The catalog as these entries would make it."""
    fold = Fold.of(contents)
    for key, entry in entries.items():
        fold.put(key, entry)
    return fold.contents()


def _check(contents: Contents, entries: Mapping[Key, Entry]) -> None:
    later = after(contents, entries)
    if (count := len(later.parsed)) > max(ENTRIES_MAX, len(contents.parsed)):
        raise ValueError(f"there are {count} servers and models; at most {ENTRIES_MAX}")
    if (count := len(later.entries)) > max(NAMES_MAX, len(contents.entries)):
        raise ValueError(
            f"there are {count} names of servers and models, with those removed; at most {NAMES_MAX}: "
            "use a name again instead of a new one"
        )
    for key, entry in entries.items():
        if entry.removed and kind_of(key) == SERVER and (users := _users(later, name_of(key))):
            raise ValueError(f"servers.{name_of(key)}: {', '.join(users)} name it; change or remove them first")
    for key, entry in entries.items():
        if fault := _unlike(later, key, entry):
            raise ValueError(fault)
    for key, fault in later.faults.items():
        if contents.faults.get(key) != fault:
            raise ValueError(fault)


def _unlike(contents: Contents, key: Key, entry: Entry) -> str:
    """Why a server cannot have models like another one; a model that is removed later is no fault."""
    like = (entry.present or {}).get("models_like")
    models = [name_of(each) for each in contents.parsed if kind_of(each) == MODEL]
    if kind_of(key) != SERVER or like is None or like in models:
        return ""
    near = f", but {one}" if (one := nearest(like, models)) else ""
    return f"servers.{name_of(key)}.models_like: there is no model {like}{near}"


def _users(contents: Contents, server: str) -> list[str]:
    """Models that name a server."""
    return [
        f"models.{name_of(key)}"
        for key, entry in contents.entries.items()
        if kind_of(key) == MODEL and server in (entry.present or {}).get("servers", ())
    ]


def of_settings(
    contents: Contents, settings: Mapping[Key, Mapping[str, Any]], *, author: str, at: int
) -> dict[Key, Entry]:
    """The entries to write so that the catalog matches a settings file.

    An entry that the file lacks is removed if an earlier file had it, and stays if a command added it.

    Args:
        contents: The present catalog.
        settings: The servers and models of the file, as `catalog.settings_by_key` gives them.
        author: Id of the key, or name of the file.
        at: Unix time.

    Raises:
        ValueError: The result would contradict itself.
    """
    gone = [key for key, entry in contents.entries.items() if entry.of_file and not entry.removed]
    wanted: Wanted = {**{key: None for key in gone if key not in settings}, **settings}
    return planned(contents, wanted, author=author, at=at, of_file=True)


def is_applied(contents: Contents, settings: Mapping[Key, Mapping[str, Any]]) -> bool:
    """Whether these servers and models of a settings file were applied last."""
    return contents.applied is not None and contents.applied.digest == fingerprint_of(settings)


def waiting(contents: Contents, settings: Mapping[Key, Mapping[str, Any]]) -> str:
    """Why servers and models of a settings file are not in force; empty if they are, or if the file has none.

    A command changes the catalog and not what was applied last, so this does not count as a difference.
    """
    if not settings or contents.applied is None or is_applied(contents, settings):
        return ""
    try:
        keys = sorted(of_settings(contents, settings, author=contents.applied.author, at=contents.applied.at))
    except ValueError as error:
        return f"the settings file has other servers and models than those applied last, and {error}"
    return f"the settings file is not applied to {listed(keys)}" if keys else ""


def differences(contents: Contents, entries: Mapping[Key, Entry]) -> list[Difference]:
    """The differences that these entries would make, sorted by key."""
    found: list[Difference] = []
    for key, entry in sorted(entries.items()):
        old = contents.entries.get(key)
        before = old.present if old is not None else None
        after = entry.present
        if before is None or after is None:
            found.append(Difference(key=key, before=before, after=after))
        elif names := [name for name in (before | after) if before.get(name) != after.get(name)]:
            former, later = ({name: each[name] for name in names if name in each} for each in (before, after))
            found.append(Difference(key=key, before=former, after=later))
    return found
