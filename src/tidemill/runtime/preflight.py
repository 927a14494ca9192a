"""Checks the settings against the environment before a start."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from tidemill.configuration import misconfigured
from tidemill.configuration.servers import Serving
from tidemill.configuration.settings import ENV_PREFIX, Settings, SettingsError
from tidemill.runtime.listening import listen

OTHER_VARIABLES: Final = frozenset({"CONFIG", "CACHE", "MAVEN", "BASE_URL"})
"""Variables with the prefix that are not settings."""
LIKENESS: Final = 0.8
"""A variable at least this similar to a setting counts as misspelt; other programs may use the prefix."""


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


def misspelt(settings: Settings, given: Mapping[str, str]) -> Iterator[Problem]:
    """Variables that look like misspelt settings."""
    servers = {server.api_key_env for server in settings.serving.servers.values()}
    for name in given.keys() - servers:
        first = name.removeprefix(ENV_PREFIX).partition("__")[0]
        if not name.startswith(ENV_PREFIX) or first in OTHER_VARIABLES or first.lower() in Settings.model_fields:
            continue
        if near := misconfigured.nearest(first.lower(), Settings.model_fields, likeness=LIKENESS):
            yield Problem(
                setting=name, text="there is no such setting, so it has no effect",
                fix=f"{ENV_PREFIX}{near.upper()} is one",
            )  # fmt: skip
