"""Checks the settings against the environment before a start."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from tidemill.configuration import misconfigured
from tidemill.configuration.settings import ENV_PREFIX, Settings, SettingsError
from tidemill.runtime.listening import listen

OTHER_VARIABLES: Final = frozenset({"CONFIG", "CACHE", "MAVEN", "BASE_URL"})
"""Variables with the prefix that are not settings."""
LIKENESS: Final = 0.8
"""The similarity from which on a variable counts as a misspelt setting; other programs may use the prefix."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A setting that does not work in this environment."""

    setting: str
    text: str
    fix: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.text}; {self.fix}"


def missing_keys(settings: Settings, given: Mapping[str, str]) -> Iterator[Problem]:
    """Missing variables with the keys of servers."""
    for name, model in settings.models.items():
        for number, backend in enumerate(model.backends):
            if backend.api_key_env and not given.get(backend.api_key_env):
                yield Problem(
                    setting=f"models.{name}.backends.{number}.api_key_env",
                    text=f"the variable {backend.api_key_env} is not set, and {backend.base} refuses lines",
                    fix=f"export {backend.api_key_env}, or leave api_key_env out if the server asks for no key",
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
    servers = {backend.api_key_env for model in settings.models.values() for backend in model.backends}
    for name in given.keys() - servers:
        first = name.removeprefix(ENV_PREFIX).partition("__")[0]
        if not name.startswith(ENV_PREFIX) or first in OTHER_VARIABLES or first.lower() in Settings.model_fields:
            continue
        if near := misconfigured.nearest(first.lower(), Settings.model_fields, likeness=LIKENESS):
            yield Problem(
                setting=name, text="there is no such setting, so it has no effect",
                fix=f"{ENV_PREFIX}{near.upper()} is one",
            )  # fmt: skip
