"""Which service a command speaks to, and with which key."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tidemill.runtime import run_file

_ADDRESS = re.compile(r"https?://[^/]+/.*[^/]")


class NoTarget(Exception):
    """No service is named as it should be, and none runs here; the text says what to do."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A service's address, `/v1` included, and the key to it."""

    base_url: str
    api_key: str = field(repr=False)


def find(*, base_url: str | None, api_key: str | None, data: Path | None, environ: Mapping[str, str]) -> Target:
    """Find the service: what the command line says, else the environment, else the local one.

    Args:
        base_url: The option `--base-url`.
        api_key: The option `--api-key`.
        data: The option `--data`: the folder of the local service.
        environ: The environment.

    Raises:
        NoTarget: An address or a key is missing, or the address lacks its scheme or its path.
    """
    folder = data or Path(environ.get("TIDEMILL_DATA") or ".tidemill")
    here = run_file.read(folder)
    local_url = here.api if here else None
    # A folder that is named on the command line goes before the environment.
    named = environ.get("TIDEMILL_BASE_URL")
    order = (local_url, named) if data else (named, local_url)
    url = base_url or order[0] or order[1]
    # The local key is for the local service: it is never shown to another address.
    local = _key(folder) if url == local_url else None
    keys = (local, environ.get("TIDEMILL_API_KEY")) if data else (environ.get("TIDEMILL_API_KEY"), local)
    key = api_key or keys[0] or keys[1]
    if url is None:
        raise NoTarget(
            f"no service runs on {folder}: start one with `tidemill up`, "
            "or name one with --base-url or TIDEMILL_BASE_URL"
        )
    url = url.rstrip("/")
    if not _ADDRESS.fullmatch(url):
        raise NoTarget(f"{url} is no address of a service: it has the form http://HOST:PORT/v1, or https://…")
    if key is None:
        raise NoTarget(f"no key for {url}: give it with --api-key or TIDEMILL_API_KEY")
    return Target(base_url=url, api_key=key)


def _key(folder: Path) -> str | None:
    try:
        return (folder / "api_key").read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
