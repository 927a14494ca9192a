"""Settings of a process: its addresses, bounds on the connections of clients to an api, and its log."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from tidemill.configuration.misconfigured import Table
from tidemill.schemas.bounds import Word

_ORIGIN: Final = re.compile(r"(\*|[a-z][a-z0-9+.-]*://[^\s/?#@A-Z]+)\Z")
_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9*._-]+)\Z")

_LINK: Final = re.compile(r"TIDEMILL_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)\Z")

EXPOSED = (
    "the API listens on %s without TLS, so keys and prompts cross the network in clear: set tls_cert_file and "
    "tls_key_file, or listen on 127.0.0.1 behind a proxy that speaks TLS"
)
"""Warning about an address without TLS that other machines reach."""


def _check_host(host: str) -> str:
    if not _HOST.match(host):
        raise ValueError(f"{host} is not a name like app.example.com: no scheme, no port, and IPv6 in [ ]")
    return host


Hosts = Annotated[tuple[Annotated[Word, AfterValidator(_check_host)], ...], Field(min_length=1)]
"""Host names as the header `Host` has them, without the port; `*` is any part of a name."""


def _check_origin(origin: str) -> str:
    if not _ORIGIN.match(origin):
        raise ValueError(
            f"{origin} is not an origin like https://app.example.com: lower case, no path, no final slash"
        )
    return origin


def _check_folder(folder: object) -> object:
    if folder == "":
        raise ValueError("it is empty; name a folder, like .tidemill")
    try:
        return Path(folder).expanduser() if isinstance(folder, str | Path) else folder
    except RuntimeError as error:
        raise ValueError(f"{folder}: there is no such user") from error


Folder = Annotated[Path, BeforeValidator(_check_folder)]
Origin = Annotated[Word, AfterValidator(_check_origin)]


def is_service_link(name: str, text: str) -> bool:
    """Whether Kubernetes made a variable for a service whose name begins with `tidemill`."""
    return _LINK.match(name.upper()) is not None or (name.upper().endswith("_PORT") and "://" in text)


class Connections(Table):
    """How many connections clients may open to one api process, and how slow they may be."""

    connections_max: Annotated[int, Field(ge=32, le=100_000)] = 1024
    """Connections at a time. One more closes the one that has been idle longest; if all are busy, its requests
    get a 503. The system's limit of open files may lower the number: each connection needs two."""
    per_address_max: Annotated[int, Field(ge=0)] | None = None
    """Connections from one client address (for IPv6: one /64 network); by default half of `connections_max`, 0
    for no bound. Behind a proxy all clients have its address."""
    head_seconds_max: Annotated[float, Field(ge=0.1, le=3_600)] = 10
    """Time in which a request's head, or a TLS handshake, must be complete; at most an hour."""
    idle_seconds_max: Annotated[int, Field(ge=1, le=86_400)] = 75
    """A connection without a request is closed after this time; a proxy in front should close its own sooner."""
    bytes_per_second_min: Annotated[int, Field(ge=1)] = 4096
    """Rate at which a client must send a body and take an answer while the server waits for it."""
    slow_seconds_max: Annotated[float, Field(ge=0.1, le=3_600)] = 30
    """The connection of a client that is this far behind that rate is closed."""


class Logs(Table):
    """What a process writes to its standard error."""

    format: Literal["auto", "json", "text"] = "auto"
    """`json` is one object a line, `text` is for people. `auto` is `text` on a terminal and in the files of
    `tidemill up`, else `json`."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level of Tidemill's own lines; those of libraries begin at warnings."""
    access: bool = False
    """Log each request to the API, not only those that fail."""


def is_local(name: str) -> bool:
    """Whether a host name or address always means the machine that uses it."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return (address := address_of(name)) is not None and address.is_loopback


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is; None if it is a name."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
