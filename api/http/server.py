"""The server of the API: accepts connections within bounds, with TLS if it is configured, and checks slow ones."""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn
from fastapi import FastAPI

from tidemill import metrics
from tidemill.api import middleware
from tidemill.api.http import hosts, tls
from tidemill.api.http.protocol import CHECK_SECONDS, Protocol, Shared, too_busy
from tidemill.configuration.settings import Settings
from tidemill.runtime import connections
from tidemill.runtime.connections import Connection, ConnectionTable

log = logging.getLogger(__name__)

STOP_SECONDS_MAX: Final = 10
"""Time for running requests to end after SIGTERM."""
FULL_SECONDS: Final = 0.1
"""Pause before the next accept after the process ran out of file descriptors."""
UNSENT_BYTES_MAX: Final = 256 << 20
"""Unread answers of all clients: 256 slow downloads. Beyond it the server closes the connection of the client that
would need longest for the rest."""
TICKS_PER_CHECK: Final = round(CHECK_SECONDS / 0.1)
NO_FILE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Server(uvicorn.Server):
    """uvicorn's server behind a listener of our own.

    It leaves signals to `serve`: uvicorn raises the signal that stopped it again.

    Raises:
        SettingsError: The certificate cannot be used.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        bounds = settings.connections
        config = uvicorn.Config(
            app,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=bounds.idle_seconds_max,
            timeout_graceful_shutdown=STOP_SECONDS_MAX,
        )
        super().__init__(config)
        table = ConnectionTable(
            connections.raise_file_limit(bounds.connections_max),
            bounds.per_address_max,
            evicted=metrics.CONNECTIONS_CLOSED.labels("room").inc,
        )
        metrics.CONNECTIONS.sample(lambda: table.counts)
        self._shared = Shared(
            config=config,
            state=self.server_state,
            bounds=bounds,
            table=table,
            is_allowed=hosts.check(settings.allowed_hosts, settings.host),
            too_busy=middleware.wrapped(too_busy, settings),
            misdirected=middleware.wrapped(hosts.misdirected, settings),
            cross_origin=middleware.CrossOrigin(settings),
        )
        self._certificate = tls.certificate(settings)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        self.servers = [Listener(listening, self._shared, self._certificate) for listening in sockets or ()]  # type: ignore[misc]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Check all connections and the certificate once in `CHECK_SECONDS`."""
        if counter % TICKS_PER_CHECK == 0:
            self._shared.late.renew()
            for connection in list(self.server_state.connections):
                connection.check()  # type: ignore[union-attr]
            if self._certificate is not None:
                self._certificate.renew()
        self._bound_answers()
        return await super().on_tick(counter)

    def _bound_answers(self) -> None:
        """Close the slowest connections while unread answers take more than `UNSENT_BYTES_MAX`."""
        sizes = {connection: connection.unsent_bytes for connection in self.server_state.connections}  # type: ignore[union-attr]
        if (left := sum(sizes.values())) <= UNSENT_BYTES_MAX:
            return
        for connection in sorted(sizes, key=lambda c: (c.seconds_left, sizes[c]), reverse=True):  # type: ignore[union-attr]
            connection.close_unread()  # type: ignore[union-attr]
            left -= sizes[connection]
            if left <= UNSENT_BYTES_MAX:
                break


class Listener:
    """Accepts the connections of a server; has the methods of an asyncio server that uvicorn calls.

    asyncio's own server calls the protocol of a connection with TLS after the handshake, when it is too late to
    count or refuse the connection.
    """

    def __init__(self, sock: socket.socket, shared: Shared, certificate: tls.Certificate | None) -> None:
        self._sock = sock
        self._shared = shared
        self._certificate = certificate
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._is_closed = False
        sock.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Stop accepting connections."""
        self._is_closed = True
        self._loop.remove_reader(self._sock)
        for task in self._opening:
            task.cancel()

    async def wait_closed(self) -> None:
        """Return at once."""

    def _listen(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        """Accept one connection, so that a flood of them delays each iteration of the loop by one at most."""
        try:
            accepted, peer = self._sock.accept()
        except OSError as error:
            if error.errno in NO_FILE:
                self._on_no_file(error)
            return
        self._add(accepted, connections.address_key(peer[0]))

    def _on_no_file(self, error: OSError) -> None:
        """Close the connection that has been idle for longest, and accept again after a pause."""
        self._shared.table.evict()
        log.warning("no connection can be accepted: %s", error.strerror)
        self._loop.remove_reader(self._sock)
        self._loop.call_later(FULL_SECONDS, self._listen)

    def _add(self, accepted: socket.socket, address: str) -> None:
        connection = Connection(address)
        if not self._shared.table.add(connection):
            metrics.CONNECTIONS_CLOSED.labels("full").inc()
            accepted.close()
            return
        task = self._loop.create_task(self._open(accepted, connection))
        connection.close = task.cancel
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, accepted: socket.socket, connection: Connection) -> None:
        """Connect the socket with its protocol; with TLS after the handshake."""
        context = self._certificate.context() if self._certificate else None
        protocol = Protocol(self._shared, connection)
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                accepted,
                ssl=context,
                ssl_handshake_timeout=self._shared.bounds.head_seconds_max if context else None,
            )
        except OSError as error:
            log.info("a connection failed to open: %s", type(error).__name__)
            metrics.CONNECTIONS_CLOSED.labels("handshake").inc()
            protocol.abandon()
        except asyncio.CancelledError:
            protocol.abandon()
            raise
