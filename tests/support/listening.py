"""Closing a listener without losing connections."""

import asyncio
from typing import Final

ACCEPT_TURNS: Final = 4
"""Turns of the loop from accepting a connection to its protocol's `connection_made`."""


async def stop_listening(*servers: asyncio.Server) -> None:
    """Accept nothing more, let what was accepted reach its protocol, and close the listeners.

    Python forgets a connection that it accepts in the turn in which its listener is closed: the transport stays
    open until a garbage collection warns of it, in whatever test is running by then.
    """
    loop = asyncio.get_running_loop()
    for server in servers:
        for socket in server.sockets:
            loop.remove_reader(socket.fileno())
    for _ in range(ACCEPT_TURNS):
        await asyncio.sleep(0)
    for server in servers:
        server.close()
