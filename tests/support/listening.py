"""Closing a listener without losing connections."""

import asyncio
from typing import Final

ACCEPT_TURNS: Final = 4
"""Iterations of the loop from accepting a connection to its protocol's `connection_made`."""


async def stop_listening(*servers: asyncio.Server) -> None:
    """Stop accepting, let accepted connections reach their protocols, and close the listeners.

    Python forgets a connection that it accepts in the same iteration of the loop in which it closes the listener:
    the transport stays open until a garbage collection warns of it, in some later test.
    """
    loop = asyncio.get_running_loop()
    for server in servers:
        for socket in server.sockets:
            loop.remove_reader(socket.fileno())
    for _ in range(ACCEPT_TURNS):
        await asyncio.sleep(0)
    for server in servers:
        server.close()
