"""Settings of a process: its addresses, bounds on the connections of clients to an api, and its log."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from tidemill.configuration.misconfigured import Table
from tidemill.schemas.bounds import Word

_ORIGIN: Final = re.compile(r"(\*|[a-z][a-z0-9+.-]*://[^\s/?#@A-Z]+)\Z")
_BROKERS: Final = re.compile(r"\s*([^\s,:/@]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?\s*\Z")

EXPOSED = (
    "the API listens on %s without TLS, so keys and prompts cross the network in clear: set tls_cert_file and "
    "tls_key_file, or listen on 127.0.0.1 behind a proxy that speaks TLS"
)
"""Warning about an address without TLS that other machines reach."""


def _check_brokers(kafka: str) -> str:
    if not all(map(_BROKERS.match, kafka.split(","))):
        raise ValueError("expected host:port[,host:port…], without a scheme or a password")
    return kafka


def _check_store(store: str) -> str:
    parts = urlsplit(store)
    if "@" in parts.netloc:
        raise ValueError(
            "the address must not contain a password: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    is_folder = parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/")
    if not (is_folder or (parts.scheme == "s3" and parts.netloc)):
        raise ValueError("expected file:///dir or s3://bucket/prefix")
    return store


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
Brokers = Annotated[str, AfterValidator(_check_brokers)]
StoreUrl = Annotated[str, AfterValidator(_check_store)]
Origin = Annotated[Word, AfterValidator(_check_origin)]


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
