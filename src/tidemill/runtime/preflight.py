"""Checks the settings against the environment before a start."""

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Final, get_args, get_origin

from tidemill.configuration import misconfigured
from tidemill.configuration.connections import is_service_link
from tidemill.configuration.servers import KEY_PREFIX, Serving
from tidemill.configuration.settings import ENV_PREFIX, Settings, SettingsError
from tidemill.runtime.listening import listen

OTHER_VARIABLES: Final = frozenset(
    f"{ENV_PREFIX}{name}" for name in ("CONFIG", "CACHE", "MAVEN", "BASE_URL", "NOTIFY_FD")
)
"""Variables with the prefix that are not settings."""
_PARTS: Final = {
    name: [*getattr(kind, "model_fields", ())]
    for name, field in Settings.model_fields.items()
    for kind in (field.annotation, *get_args(field.annotation))
    if hasattr(kind, "model_fields") or get_origin(kind) is dict
}
"""The tables among the settings, with the names of their settings; a table by names of the user has none."""
TABLES: Final = frozenset(_PARTS)
"""Settings of which variables may name a part."""
LIKELY_MAX: Final = 3
"""Settings that a message about a wrong name suggests."""
LIKENESS: Final = 0.85
"""A name at least this similar to a setting is its misspelling rather than a longer form of another."""
LIKENESS_MIN: Final = 0.7
"""A name less similar to every setting has nothing to do with them."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A setting that does not work in this environment."""

    setting: str
    text: str
    fix: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.text}; {self.fix}"


def lacking(serving: Serving) -> Iterator[Problem]:
    """Keys and files that servers need and this process lacks."""
    for name, server in serving.servers.items():
        if (lack := server.lack) is not None:
            yield Problem(
                setting=f"server {name}",
                text=f"{lack}, so lines for {server.base} wait",
                fix="set it where the processors run, or change the server: `tidemill servers set`",
            )


def address_fault(settings: Settings) -> str | None:
    """Why the API cannot listen on its address; None if it can."""
    try:
        with closing(listen(settings.host, settings.port)):
            return None
    except SettingsError as error:
        return str(error)


def unknown(settings: Settings, given: Mapping[str, str] = os.environ) -> Iterator[Problem]:
    """Variables with the prefix that are no settings, which a process ignores."""
    servers, buckets = settings.serving.servers.values(), settings.buckets.values()
    keys = {*(one.api_key_env for one in servers), *(one.secret_access_key_env for one in buckets)}
    keys.add(settings.kafka_security.password_env)
    for name, text in sorted(given.items()):
        first, _, rest = name.upper().removeprefix(ENV_PREFIX).lower().partition("__")
        is_setting = first in (TABLES if rest else Settings.model_fields)
        is_other = (
            name in keys
            or name in OTHER_VARIABLES
            or name.upper().startswith(KEY_PREFIX)
            or is_service_link(name, text)
        )
        if name.upper().startswith(ENV_PREFIX) and not is_setting and not is_other:
            likely = " or ".join(f"{ENV_PREFIX}{one.upper()}" for one in _likely(f"{first}_{rest}".rstrip("_")))
            yield Problem(
                setting=name, text="there is no such setting, so it has no effect",
                fix=f"{likely} is one" if likely else "remove it, or correct its name",
            )  # fmt: skip


def _likely(name: str) -> list[str]:
    """The settings that a wrong name may mean, with two underscores between the names of nested ones."""
    names = [*Settings.model_fields, *(f"{table}__{part}" for table, parts in _PARTS.items() for part in parts)]
    flat = {one.replace("__", "_"): one for one in names}
    if longer := [one for key, one in flat.items() if key.startswith(f"{name}_") and one not in TABLES]:
        return longer[:LIKELY_MAX]
    shorter = sorted((key for key in flat if name.startswith(f"{key}_")), key=len)
    alike = misconfigured.nearest(name, flat, likeness=LIKENESS)
    near = alike or (shorter[-1] if shorter else misconfigured.nearest(name, flat, likeness=LIKENESS_MIN))
    return [flat[near]] if near else []
