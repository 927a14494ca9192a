"""The URLs that webhooks may call, and the addresses that a connection may reach.

A URL is checked when a client sets it. That helps the client but protects nothing: a name may resolve to another
address later. The protection is `is_reachable`, which checks the address of each connection before it is opened.

Only global unicast addresses are reachable, and those in networks that the operator allows. An IPv6 address that
is translated to an IPv4 address counts as that, and one of a tunnel as both ends. Sources: IANA's registries of
special-purpose addresses (RFC 6890), RFC 4291 (mapped), RFC 3056 (6to4), RFC 4380 (Teredo), RFC 6052 (NAT64),
RFC 5214 (ISATAP).
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Final
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Field

from tidemill.schemas.bounds import URL_CHARS_MAX

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NETWORKS_MAX: Final = 100
PORTS: Final = (80, 443)
"""Allowed ports below `PORT_FREE_MIN`; the others belong to services that do not speak HTTP."""
PORT_FREE_MIN: Final = 1024

_GLOBAL_V6: Final = IPv6Network("2000::/3")
_SPECIAL: Final[tuple[Network, ...]] = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
            "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
            "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "3fff::/20",
            # The metadata and DNS service of Azure's virtual machines, a public address.
            "168.63.129.16/32",
        ),
    )
)  # fmt: skip
_TRANSLATED: Final = IPv6Network("64:ff9b::/96")
"""Addresses that NAT64 translates to the IPv4 address in their last 32 bits."""
_ISATAP: Final = (0x00005EFE, 0x02005EFE)
_HOST: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,251}[a-z0-9.])?\Z", re.IGNORECASE)
_VISIBLE: Final = re.compile(r"[!-~]+\Z")


class UrlRefused(ValueError):
    """A webhook must not have this URL; the text says why, as the end of a sentence."""


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """The networks of a setting.

    Raises:
        ValueError: One is not a network like `10.0.0.0/8`.
    """
    return tuple(ip_network(text.strip()) for text in texts)


def _check(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(str, networks(texts)))


Networks = Annotated[tuple[str, ...], Field(max_length=NETWORKS_MAX), AfterValidator(_check)]
"""Networks of a setting."""


def is_reachable(text: str, allowed: Iterable[Network], *, public: bool = True) -> bool:
    """Whether a connection may go to this address, as a socket names it.

    Without `public`, only networks that the operator allows are reachable.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return all(
        (public and _is_public(each))
        or any(each in network for network in allowed if network.version == each.version)
        for each in _meant(address)
    )


def checked_url(text: str, allowed: Iterable[Network]) -> str:
    """The URL, if a webhook may have it.

    Raises:
        UrlRefused: It may not.
    """
    allowed = tuple(allowed)
    if len(text) > URL_CHARS_MAX:
        raise UrlRefused(f"a URL has at most {URL_CHARS_MAX} characters")
    if _VISIBLE.match(text) is None or "\\" in text:
        raise UrlRefused("a URL has only visible ASCII characters and no backslash")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise UrlRefused("it is not a URL") from None
    if parts.scheme != "https" and not (parts.scheme == "http" and allowed):
        raise UrlRefused("it must begin with https://, or http:// for networks of the setting webhook_allow")
    if "@" in parts.netloc:
        raise UrlRefused("it must not have a user name or a password")
    if parts.fragment or "#" in text:
        raise UrlRefused("it must not have a fragment")
    if port is not None and port not in PORTS and port < PORT_FREE_MIN:
        raise UrlRefused(f"its port must be 80, 443, or at least {PORT_FREE_MIN}")
    _check_host(parts, allowed)
    return text


def _check_host(parts: SplitResult, allowed: tuple[Network, ...]) -> None:
    host = parts.hostname or ""
    literal = _literal(host)
    if literal is None and _HOST.match(host) is None:
        raise UrlRefused("its host is not a name or an address")
    if literal is None and re.fullmatch(r"(0x[0-9a-f]*|\d+)", host.rstrip(".").rpartition(".")[2]):
        raise UrlRefused("an address must be four decimal numbers, or IPv6 in brackets")
    is_local = host.rstrip(".") == "localhost" or host.rstrip(".").endswith(".localhost")
    named = "127.0.0.1" if is_local else literal
    if named is not None and not is_reachable(named, allowed):
        raise UrlRefused(
            "its address is private or special; the operator may allow it by the setting webhook_allow"
        )


def _literal(host: str) -> str | None:
    try:
        return str(ip_address(host))
    except ValueError:
        return None


def _is_public(address: Address) -> bool:
    if any(address in network for network in _SPECIAL if network.version == address.version):
        return False
    if isinstance(address, IPv6Address):
        return address in _GLOBAL_V6 and address.is_global and not address.is_multicast
    return address.is_global and not address.is_multicast


def _meant(address: Address) -> tuple[Address, ...]:
    """The addresses that an address stands for, or leads to through a tunnel."""
    if isinstance(address, IPv4Address):
        return (address,)
    number = int(address)
    low = IPv4Address(number & 0xFFFF_FFFF)
    if address.ipv4_mapped is not None or address in _TRANSLATED:
        return (low,)
    is_isatap = (number >> 32) & 0xFFFF_FFFF in _ISATAP
    tunnels = (low if is_isatap else None, address.sixtofour, *(address.teredo or ()))
    return (address, *(each for each in tunnels if each is not None))
