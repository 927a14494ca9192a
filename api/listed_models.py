"""Admits models that servers list and a pattern of their settings names, like LoRA adapters.

The api asks each server with patterns, every ten seconds, and writes what it finds into the catalog, so that every
process knows it. A model that no server lists any more is removed: its lines wait until it is listed again.
A server that gives no list changes nothing. Entries of others are never touched, not even those that they removed.
Several processes of the api write the same, so the second one writes nothing.
"""

import asyncio
import fnmatch
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from tidemill.configuration import changes
from tidemill.configuration.catalog import MODEL, Contents, Key, name_of
from tidemill.configuration.servers import ModelName, Server
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.connection import LogUnavailable
from tidemill.runtime import server_probe
from tidemill.runtime.server_probe import NoModels
from tidemill.schemas.log import topics
from tidemill.schemas.ports import Clock, Sender
from tidemill.wording import counted

AUTHOR: Final = "discovery"
"""Author of the entries."""
LOOK_SECONDS: Final = 10.0
ASKED_MAX: Final = 16
"""Servers that are asked at once."""
ADMITTED_MAX: Final = 200
"""Models that one server may add; further ones are ignored."""
MISSED_MAX: Final = 3
"""Lists in a row without a model after which it is gone from the server."""
_OWN_SETTINGS: Final = frozenset({"servers", "aliases", "upstream_model", "paused"})
"""Settings that a model does not take over from its `models_like` model."""

_names: Final = TypeAdapter[str](ModelName)
_log = logging.getLogger(__name__)


class ListedModels:
    """Follows the lists of the servers."""

    def __init__(self, catalog: Catalog, log: Sender, clock: Clock) -> None:
        """Ask nothing yet; `log` appends to the catalog's topic."""
        self._catalog = catalog
        self._log = log
        self._clock = clock
        self._missed: defaultdict[tuple[str, str], int] = defaultdict(int)
        """Consecutive lists without the model, by server and model."""
        self._warned: dict[str, str] = {}
        """The last warning about each server; the empty name has the one about all servers."""

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except (LogUnavailable, ValueError) as error:
                self._warn("", f"listed models are not admitted: {error}")
            except Exception:  # noqa: BLE001  the next lists may be usable
                _log.exception("listed models are not admitted")

    async def look(self) -> None:
        """Ask each server once, and write what has changed.

        Raises:
            LogUnavailable: The log does not answer.
            ValueError: The change contradicts the catalog.
        """
        servers = {name: one for name, one in self._catalog.contents.serving.servers.items() if one.models}
        room = asyncio.Semaphore(ASKED_MAX)

        async def ask(server: Server) -> list[str] | NoModels:
            async with room:
                return await server_probe.models(server)

        answers = await asyncio.gather(*(ask(server) for server in servers.values()))
        listed = {
            name: set() if isinstance(answer, NoModels) else self._admitted(name, server, answer)
            for (name, server), answer in zip(servers.items(), answers, strict=True)
        }
        silent = {name for name, answer in zip(servers, answers, strict=True) if isinstance(answer, NoModels)}
        self._keep(listed, silent)
        at = int(self._clock())

        def fitting(contents: Contents) -> tuple[dict[Key, Any], list[Key]]:
            return fit(contents, wanted(contents, listed))

        def plan(contents: Contents) -> Mapping[Key, Any]:
            return changes.planned(contents, fitting(contents)[0], author=AUTHOR, at=at)

        if plan(self._catalog.contents):
            await self._catalog.change(self._log, plan)
        self._warned = {name: text for name, text in self._warned.items() if name in ("", *servers)}
        text = ""
        if omitted := fitting(self._catalog.contents)[1]:
            text = f"{len(omitted)} listed models do not fit into the catalog, the first is {name_of(omitted[0])}"
        self._warn("", text)

    def _admitted(self, name: str, server: Server, listed: Collection[str]) -> set[str]:
        """The models of a list that a pattern names, in bounds."""
        named = {model for model in listed if any(fnmatch.fnmatchcase(model, one) for one in server.models)}
        usable = sorted(model for model in named if _is_name(model))[:ADMITTED_MAX]
        models = counted(len(named), "model")
        text = f"server {name} lists {models} that its patterns name; {len(usable)} can be admitted"
        self._warn(name, text if len(usable) < len(named) else "")
        return set(usable)

    def _warn(self, server: str, text: str) -> None:
        """Log a warning about a server unless it repeats the last one."""
        if text and text != self._warned.get(server):
            _log.warning("%s", text)
        self._warned[server] = text

    def _keep(self, listed: Mapping[str, set[str]], silent: Collection[str]) -> None:
        """Keep models that a server omits, up to `MISSED_MAX` lists; a silent server's models always stay."""
        missed: defaultdict[tuple[str, str], int] = defaultdict(int)
        for key, servers in _present(self._catalog.contents).items():
            model = name_of(key)
            for server in servers & listed.keys():
                if model in listed[server]:
                    continue
                missed[server, model] = self._missed[server, model] + (server not in silent)
                if missed[server, model] < MISSED_MAX:
                    listed[server].add(model)
        self._missed = missed


def wanted(contents: Contents, listed: Mapping[str, Collection[str]]) -> dict[Key, dict[str, Any] | None]:
    """The models to admit, with their settings, and those to remove.

    Args:
        contents: The present catalog.
        listed: The models of each server, among those that its patterns name.
    """
    servers: defaultdict[str, list[str]] = defaultdict(list)
    for server in sorted(listed):
        for model in listed[server]:
            servers[model].append(server)
    found: dict[Key, dict[str, Any] | None] = dict.fromkeys(_present(contents))
    users = {topics.place(model): model for model in contents.serving.models}
    for model, of_model in sorted(servers.items()):
        key = MODEL + model
        entry = contents.entries.get(key)
        if model in contents.serving.aliases or (entry is not None and entry.author != AUTHOR):
            continue
        if users.setdefault(topics.place(model), model) != model:
            continue
        settings = _settings_like(contents, of_model[0])
        taken = {name: value for name, value in settings.items() if name not in _OWN_SETTINGS}
        found[key] = {**taken, "servers": of_model}
    return found


def fit(contents: Contents, models: Mapping[Key, Any]) -> tuple[dict[Key, Any], list[Key]]:
    """The changes of `wanted` for which the catalog has room, and the new models without room."""
    new = [key for key, settings in models.items() if settings is not None and key not in contents.parsed]
    kept = len(contents.parsed) - sum(settings is None for settings in models.values())
    # Names that were there before come first: they take no room among the names.
    new.sort(key=lambda key: key not in contents.entries)
    names = sum(key in contents.entries for key in new) + changes.NAMES_MAX - len(contents.entries)
    omitted = new[max(0, min(changes.ENTRIES_MAX - kept, names)) :]
    left_out = set(omitted)
    return {key: settings for key, settings in models.items() if key not in left_out}, omitted


def _settings_like(contents: Contents, server: str) -> Mapping[str, Any]:
    """The settings that the models of a server take over."""
    found = contents.serving.servers.get(server)
    if found is None or found.models_like is None:
        return {}
    entry = contents.entries.get(MODEL + found.models_like)
    return {} if entry is None else entry.settings


def _present(contents: Contents) -> dict[Key, set[str]]:
    """The models that were admitted, and their servers."""
    return {
        key: set(entry.settings.get("servers", ()))
        for key, entry in contents.entries.items()
        if entry.author == AUTHOR and not entry.removed and key.startswith(MODEL)
    }


def _is_name(model: str) -> bool:
    try:
        _names.validate_python(model)
    except ValidationError:
        return False
    return True
