"""Listens on an address; an error names the setting to change."""

import errno
import ipaddress
import socket
from typing import Final

from tidemill.configuration.settings import SettingsError

BACKLOG_CONNECTIONS_MAX: Final = 1024
SILENT_SECONDS: Final = 5
"""Linux delays a connection without data for about this long, during which it takes no open file. Beyond
`BACKLOG_CONNECTIONS_MAX` such connections it passes new ones on at once (tcp(7), TCP_DEFER_ACCEPT; SYN
cookies)."""
_FIXES: Final = {
    errno.EADDRINUSE: "port {port} of {host} is in use; choose another with --port, or stop what listens there",
    errno.EADDRNOTAVAIL: "host: {host} is not an address of this machine; set one that it has, or 127.0.0.1",
    errno.EACCES: "port {port} may not be listened on by this user; choose one from 1024 on with --port",
    errno.EAFNOSUPPORT: "host: {host} is an address of IPv6, which this machine does not speak; set 127.0.0.1",
}


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 chooses a free port.

    Raises:
        SettingsError: This machine does not have the address, the port is in use, or the like.
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
        text = _FIXES.get(error.errno or 0, f"host, port: {{host}} and {{port}} do not work: {error.strerror}")
        raise SettingsError(text.format(host=host, port=port)) from error
    if hasattr(socket, "TCP_DEFER_ACCEPT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, SILENT_SECONDS)
    return listening


def client_host(host: str) -> str:
    """The host for the URL of a server that listens on `host`."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    is_v6 = isinstance(address, ipaddress.IPv6Address)
    if address.is_unspecified:
        return "[::1]" if is_v6 else "127.0.0.1"
    return f"[{host}]" if is_v6 else host
