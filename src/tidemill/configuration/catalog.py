"""The catalog: the present servers and models, folded from the records of `tidemill.catalog`. No I/O.

The last record of a key counts, so the topic may be compacted. A writer checks a change before it writes. Two
writers may still contradict each other, and a record may be of another version; so the fold accepts any record,
leaves out an entry that it cannot use, and says why in `Contents.faults`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

import orjson
from pydantic import TypeAdapter, ValidationError

from tidemill.configuration import misconfigured
from tidemill.configuration.servers import Model, ModelName, Price, Server, ServerName, Serving
from tidemill.configuration.serving import Contradiction, serving
from tidemill.schemas import configured
from tidemill.schemas.bounds import Name, Shape, Time

SERVER: Final = "server/"
MODEL: Final = "model/"
FILE: Final = "file"
"""The key of the record about the settings file that was applied last."""
PARTITIONS: Final = "partitions"
"""The key of the record about the partitions of the topics."""
SETTINGS_FILE: Final = "tidemill.toml"
"""The author of entries that a process took from its settings."""
SETTINGS_BYTES_MAX: Final = 256 * 1024
_NAMES: Final[Mapping[str, TypeAdapter[str]]] = {SERVER: TypeAdapter(ServerName), MODEL: TypeAdapter(ModelName)}
_TABLES: Final[Mapping[str, type[Server | Model]]] = {SERVER: Server, MODEL: Model}

Key = str
"""`server/name` or `model/name`."""


class PriceError(Exception):
    """The price of a model is not valid in this version; the text says why."""


class Entry(Shape):
    """A server or a model, as a record has it."""

    settings: dict[str, Any]
    """Its settings, without those that have their default."""
    removed: bool = False
    """Whether it is removed. The price of a removed model still counts for its batches."""
    of_file: bool = False
    """Whether it came from a settings file; a later file without it removes it."""
    author: Name
    """Id of the key that changed it last, or the name of the settings file."""
    at: Time
    revision: int = -1
    """Offset of its record; readers set it."""

    @property
    def present(self) -> dict[str, Any] | None:
        """Its settings; None if it is gone."""
        return None if self.removed else self.settings


class Applied(Shape):
    """The settings file that was applied last."""

    digest: Name
    """The digest of its servers and models."""
    author: Name
    at: Time


class Partitions(Shape):
    """The number of partitions that the records of batches are in."""

    count: int


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The servers and models at one moment."""

    entries: Mapping[Key, Entry]
    """All servers and models, including removed ones."""
    serving: Serving
    """The usable servers and models."""
    faults: Mapping[Key, str]
    """Why the others cannot be used."""
    applied: Applied | None
    """None until a settings file has been applied: the catalog is not filled yet."""
    revision: int
    """Offset of the newest record."""
    parsed: Mapping[Key, Server | Model | str]
    """Each present entry, or why it is not valid."""
    partitions: int | None = None
    """The number of partitions of the topics when the api first started with them; None before that."""

    def price_of(self, model: str | None) -> Price:
        """The price of a model, even if it is removed or other settings are not valid; zero for an unknown one.

        Raises:
            PriceError: The price cannot be read.
        """
        if model in self.serving.models:
            return self.serving.models[model].price
        entry = self.entries.get(f"{MODEL}{model}")
        try:
            return Price() if entry is None else Price.model_validate(entry.settings.get("price", {}))
        except ValidationError as error:
            why = "; ".join(misconfigured.faults(error))
            raise PriceError(f"the price of the model {model} cannot be read ({why})") from error


@dataclass
class Fold:
    """Folds records into contents."""

    entries: dict[Key, Entry] = field(default_factory=dict)
    applied: Applied | None = None
    partitions: int | None = None
    revision: int = -1
    _parsed: dict[Key, Server | Model | str] = field(default_factory=dict)
    """See `Contents.parsed`."""

    @classmethod
    def of(cls, contents: Contents) -> "Fold":
        """Continue from contents."""
        return cls(
            entries=dict(contents.entries), applied=contents.applied, revision=contents.revision,
            _parsed=dict(contents.parsed), partitions=contents.partitions,
        )  # fmt: skip

    def apply(self, key: str, value: bytes | None, offset: int) -> None:
        """Fold a record.

        Raises:
            ValueError: It is not one of this topic.
        """
        self.revision = offset
        if key == FILE:
            self.applied = None if value is None else Applied.model_validate_json(value)
        elif key == PARTITIONS:
            self.partitions = None if value is None else Partitions.model_validate_json(value).count
        elif not key.startswith((SERVER, MODEL)):
            raise ValueError("unknown key")
        elif fault := next(configured.faults({name_of(key): None}), None):
            raise ValueError(fault)
        elif value is None:
            self.entries.pop(key, None)
            self._parsed.pop(key, None)
        else:
            self.put(key, Entry.model_validate_json(value).model_copy(update={"revision": offset}))

    def put(self, key: Key, entry: Entry) -> None:
        """Set an entry."""
        self.entries[key] = entry
        if entry.removed:
            self._parsed.pop(key, None)
        else:
            self._parsed[key] = _parsed(kind_of(key), entry.settings)

    def contents(self) -> Contents:
        """The servers and models after the records so far."""
        faults = {key: found for key, found in self._parsed.items() if isinstance(found, str)}
        # Of two servers with one address, the older one stays.
        order = sorted(self._parsed, key=lambda key: (self.entries[key].revision < 0, self.entries[key].revision))
        servers = {name_of(key): one for key in order if isinstance(one := self._parsed[key], Server)}
        models = {name_of(key): one for key in order if isinstance(one := self._parsed[key], Model)}
        contradictions: list[Contradiction] = []
        found = serving(servers, models, contradictions)
        faults |= {f"{error.kind[:-1]}/{error.name}": str(error) for error in contradictions}
        return Contents(
            entries=dict(self.entries), serving=found, faults=faults, applied=self.applied, revision=self.revision,
            parsed=dict(self._parsed), partitions=self.partitions,
        )  # fmt: skip


def kind_of(key: Key) -> Literal["server/", "model/"]:
    """`SERVER` or `MODEL`."""
    return "server/" if key.startswith(SERVER) else "model/"


def name_of(key: Key) -> str:
    """The name of a server or a model."""
    return key.partition("/")[2]


def _parsed(kind: str, settings: Mapping[str, Any]) -> Server | Model | str:
    """A server or a model, without settings that this version does not know; if invalid, the reason as text."""
    table = _TABLES[kind]
    known = {name: value for name, value in settings.items() if name in table.model_fields}
    if fault := next(configured.faults(known), None):
        return fault
    if "backends" in known:
        return "backends: records name servers"
    try:
        return table.model_validate(known)
    except ValidationError as error:
        return "; ".join(misconfigured.faults(error))


def checked(key: Key, settings: Mapping[str, Any]) -> Server | Model:
    """Check the settings of a server or a model.

    Raises:
        ValueError: They are not valid; the text begins with the path of the setting.
    """
    kind, name = kind_of(key), name_of(key)
    path = (f"{kind[:-1]}s", name)
    try:
        if found := configured.first_faults({path[0]: {name: dict(settings)}}):
            raise ValueError("; ".join(found))
        if len(orjson.dumps(settings)) > SETTINGS_BYTES_MAX:
            raise ValueError(f"{'.'.join(path)}: more than {SETTINGS_BYTES_MAX} bytes")
        return _TABLES[kind].model_validate(dict(settings))
    except ValidationError as error:
        raise ValueError("; ".join(misconfigured.faults(error, *path))) from error
    except TypeError as error:
        raise ValueError(f"{'.'.join(path)}: {error}") from error


def check_name(key: Key) -> None:
    """Check the name of a new server or model, as that of one in a settings file.

    Raises:
        ValueError: It is not valid; the text begins with the path of the setting.
    """
    try:
        _NAMES[kind_of(key)].validate_python(name_of(key))
    except ValidationError as error:
        path = f"{kind_of(key)[:-1]}s.{ascii(name_of(key))[1:-1]}"
        raise ValueError(f"{path}: {misconfigured.faults(error)[0]}") from error


def settings_by_key(
    servers: Mapping[str, Server], models: Mapping[str, Model], known: Mapping[str, Server] = MappingProxyType({})
) -> dict[Key, dict[str, Any]]:
    """The settings of servers and models by key; servers of the short form get names.

    Args:
        servers: By name.
        models: By name; they may also name `known` servers.
        known: Further servers, which are not among the settings.

    Raises:
        ValueError: They contradict each other.
    """
    found = serving({**known, **servers}, models)
    settings = {SERVER + name: _dumped(one) for name, one in found.servers.items() if name not in known}
    for name, model in models.items():
        dumped = _dumped(model)
        dumped.pop("backends", None)
        settings[MODEL + name] = {**dumped, "servers": list(found.by_model[name])}
    return settings


def _dumped(one: Server | Model) -> dict[str, Any]:
    return one.model_dump(mode="json", exclude_defaults=True, by_alias=True)


def in_order(keys: Mapping[Key, Entry]) -> Iterable[tuple[Key, Entry]]:
    """The entries in an order in which each model refers only to servers that exist at that point."""
    return sorted(
        keys.items(), key=lambda item: (item[1].removed, (kind_of(item[0]) == SERVER) == item[1].removed)
    )
