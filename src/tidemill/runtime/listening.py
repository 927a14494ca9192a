"""Listens on an address, or says in the words of the settings why that cannot be."""

import errno
import ipaddress
import socket
from typing import Final

from tidemill.configuration.settings import SettingsError

BACKLOG_CONNECTIONS_MAX: Final = 1024
SILENT_SECONDS: Final = 5
"""Linux keeps a connection that has sent nothing to itself for about so long: it costs no file and no turn of the
event loop. Beyond `BACKLOG_CONNECTIONS_MAX` of them it hands new ones over at once (tcp(7), TCP_DEFER_ACCEPT; SYN
cookies)."""
_MEND: Final = {
    errno.EADDRINUSE: "port {port} of {host} is in use; choose another with --port, or stop what listens there",
    errno.EADDRNOTAVAIL: "host: {host} is no address of this machine; set one that it has, or 127.0.0.1",
    errno.EACCES: "port {port} may not be listened on by this user; choose one from 1024 on with --port",
    errno.EAFNOSUPPORT: "host: {host} is an address of IPv6, which this machine does not speak; set 127.0.0.1",
}


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        SettingsError: The address is not of this machine, the port is taken, or the like.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.getaddrinfo(host, port, family)
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG_CONNECTIONS_MAX)
    except (socket.gaierror, UnicodeError) as error:
        raise SettingsError(
            f"host: {host} is neither an address nor a name that is known here; it has no http:// and no port"
        ) from error
    except OSError as error:
        text = _MEND.get(error.errno or 0, f"host, port: {{host}} and {{port}} do not work: {error.strerror}")
        raise SettingsError(text.format(host=host, port=port)) from error
    if hasattr(socket, "TCP_DEFER_ACCEPT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, SILENT_SECONDS)
    return listening


def client_host(host: str) -> str:
    """The address to call where a server listens on `host`, as it stands in a URL."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    is_v6 = isinstance(address, ipaddress.IPv6Address)
    if address.is_unspecified:
        return "[::1]" if is_v6 else "127.0.0.1"
    return f"[{host}]" if is_v6 else host
