"""Finds the service that a command talks to, and its API key."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tidemill import credentials, ownership
from tidemill.client.errors import COMMANDS, UsageError, Wording
from tidemill.credentials import SecretError
from tidemill.runtime import run_file
from tidemill.storage.locked_directory import holder

_ADDRESS = re.compile(r"https?://[^/]+/.*[^/]")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A service: its address with `/v1`, and an API key."""

    base_url: str
    api_key: str = field(repr=False)


def find(
    *,
    base_url: str | None,
    api_key: str | None,
    data: Path | None,
    environ: Mapping[str, str],
    wording: Wording = COMMANDS,
) -> Target:
    """Find the service: arguments override the environment, and the environment a local service.

    `data`, the data folder of a local service, goes before the environment.

    Raises:
        UsageError: The address or the key is missing or malformed.
    """
    folder = data or Path(environ.get("TIDEMILL_DATA") or ".tidemill").expanduser()
    running = run_file.read(folder)
    local_url = running.api if running else None
    named = environ.get("TIDEMILL_BASE_URL")
    order = (local_url, named) if data else (named, local_url)
    url = base_url or order[0] or order[1]
    if url is None:
        if (process := holder(folder)) is not None:
            raise UsageError(
                f"the service in {folder} is starting or stopping (process {process}); "
                "try again once `tidemill up` says that it is ready"
            )
        raise UsageError(
            f"no service is running in {folder}: start one with `tidemill up`, "
            f"or name one with {wording.base_url} or TIDEMILL_BASE_URL"
        )
    url = url.rstrip("/")
    if not _ADDRESS.fullmatch(url):
        raise UsageError(f"{url} is not the address of a service; expected http://HOST:PORT/v1 or https://…")
    key = api_key or (None if data else environ.get("TIDEMILL_API_KEY"))
    # The key of the local service must never reach another address.
    if not key and url == local_url:
        key = _key(folder, wording, is_named=bool(data or environ.get("TIDEMILL_DATA")))
    if not (key := key or environ.get("TIDEMILL_API_KEY")):
        raise UsageError(f"no API key for {url}: pass {wording.api_key} or set TIDEMILL_API_KEY")
    try:
        return Target(base_url=url, api_key=credentials.checked(key, "the API key", is_header=True))
    except SecretError as error:
        raise UsageError(f"{error}: check {wording.api_key}, TIDEMILL_API_KEY or the file api_key") from None


def _key(folder: Path, wording: Wording, *, is_named: bool) -> str | None:
    """The key of the service in a folder; None if there is no file, or another user could have written it."""
    file = folder / "api_key"
    if not (is_named or ownership.is_trusted(file)):
        return None
    try:
        return credentials.of_file(file)
    except SecretError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise UsageError(f"{error}; restore it from a backup, or pass {wording.api_key}") from None
