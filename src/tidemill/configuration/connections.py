"""Settings of what clients' connections may take of an api process."""

import ipaddress
from typing import Annotated

from pydantic import Field

from tidemill.configuration.misconfigured import Table

EXPOSED = (
    "the API listens on %s without TLS, so keys and prompts cross the network in clear: set tls_cert_file and "
    "tls_key_file, or listen on 127.0.0.1 behind a proxy that speaks TLS"
)
"""What is wrong with an address that others reach, and what to do."""


class Connections(Table):
    """What clients' connections may take of one api process, and how slow they may be."""

    connections_max: Annotated[int, Field(ge=32, le=100_000)] = 1024
    """Connections at one time. One more closes the one that has waited longest for a request; where all are at
    work, requests are answered with 503. Fewer, where the system allows too few open files: each needs two."""
    per_address_max: Annotated[int, Field(ge=0)] | None = None
    """Of them, those of one client address (of IPv6: of one network of 64 bits); by default half of them, 0 is no
    bound. Behind a proxy all have its address."""
    head_seconds_max: Annotated[float, Field(gt=0)] = 10
    """A request's head, and a TLS handshake, has to be whole after so long."""
    idle_seconds_max: Annotated[int, Field(ge=1)] = 75
    """A connection without a request is closed after so long; a proxy in front should close its own sooner."""
    bytes_per_second_min: Annotated[int, Field(ge=1)] = 4096
    """The rate at which a client has to send a body and to take an answer, while the server waits for it."""
    slow_seconds_max: Annotated[float, Field(gt=0)] = 30
    """A client that is behind that rate by so long is closed."""


def is_local(name: str) -> bool:
    """Whether a name or an address is of this machine wherever it is said."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
