"""What a process says of itself over HTTP: `/livez`, `/readyz` and `/metrics`, to whoever watches it.

`/livez` asks nobody else: a broker that is away is no reason to restart a process. `/readyz` asks all that the
process needs; an answer is kept for a moment, so that who asks often costs little.
"""

import asyncio
import functools
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from tidemill.runtime.connections import Connection, ConnectionTable
from tidemill.schemas.ports import Store

log = logging.getLogger(__name__)

PROBE_SECONDS_MAX: Final = 5.0
"""A probe that takes longer has failed."""
KEPT_SECONDS: Final = 2.0
"""How long the outcome of the probes is given again."""
HEAD_BYTES_MAX: Final = 8 * 1024
REQUEST_SECONDS_MAX: Final = 10.0
CONNECTIONS_MAX: Final = 64
"""One more closes the one that has waited longest for a request."""

Probe = Callable[[], Awaitable[object]]
"""Returns where what it asks is well, and raises where it is not."""


class Unhealthy(Exception):
    """Something is not as it has to be; the text is shown, so it holds no secret and no user's text."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes
    kind: str = "application/json"


class Health:
    """What a process says of itself.

    Args:
        fault: Says what is wrong with the process itself; None where nothing is. It waits for nothing.
        probes: What the process needs, by name.
        metrics: The text of `/metrics` and its content type.
    """

    def __init__(
        self,
        *,
        fault: Callable[[], str | None],
        probes: Mapping[str, Probe],
        metrics: Callable[[], tuple[bytes, str]],
    ) -> None:
        self._fault = fault
        self._probes = dict(probes)
        self._metrics = metrics
        self._kept: dict[str, str] = {}
        self._kept_at = float("-inf")
        self._asking = asyncio.Lock()

    async def answer(self, path: str) -> Answer:
        """Answer a GET of a path."""
        match path:
            case "/livez":
                return _answer(self._own_fault())
            case "/readyz":
                return _answer(await self._faults() | self._own_fault())
            case "/metrics":
                text, kind = self._metrics()
                return Answer(status=200, body=text, kind=kind)
            case _:
                return Answer(status=404, body=b'{"status":"not found"}\n')

    async def _faults(self) -> dict[str, str]:
        async with self._asking:
            if time.monotonic() - self._kept_at >= KEPT_SECONDS:
                found = await asyncio.gather(*(_probed(probe) for probe in self._probes.values()))
                named = zip(self._probes, found, strict=True)
                self._kept = {name: fault for name, fault in named if fault is not None}
                self._kept_at = time.monotonic()
        return self._kept

    def _own_fault(self) -> dict[str, str]:
        fault = self._fault()
        return {} if fault is None else {"process": fault}


@asynccontextmanager
async def serve(health: Health, host: str, port: int) -> AsyncIterator[None]:
    """Answer for as long as the block lasts; with port 0 nobody is answered.

    A port that is taken is told in the log, and is no reason not to work.
    """
    if not port:
        yield
        return
    table = ConnectionTable(CONNECTIONS_MAX)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport = writer.transport
        connection = Connection("", transport.abort)
        try:
            if table.add(connection):
                async with asyncio.timeout(REQUEST_SECONDS_MAX):
                    await _exchange(health, reader, writer, functools.partial(table.set_busy, connection))
                    writer.close()
                    await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a timeout is an OSError
        finally:
            table.remove(connection)
            transport.abort()

    try:
        server = await asyncio.start_server(connected, host, port, limit=HEAD_BYTES_MAX, backlog=CONNECTIONS_MAX)
    except OSError as error:
        log.warning("health is not served on %s:%d: %s", host, port, error)
        yield
        return
    try:
        yield
    finally:
        server.close()


async def check_store(store: Store, name: str) -> None:
    """Probe a store: an object is written that the next probe replaces.

    Args:
        store: The store.
        name: Whose probe it is; part of the object's key.

    Raises:
        OSError: The store failed.
    """

    async def content() -> AsyncIterator[bytes]:
        yield b"well\n"

    await store.write(f"health/{name}", content())


async def _exchange(
    health: Health, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, work: Callable[[], bool]
) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    # Liveness waits for nothing, so it is answered also where others are being waited for.
    if not work() and path != "/livez":
        answer = Answer(status=_UNAVAILABLE, body=b'{"status":"too many requests under way"}\n')
    elif method in {"GET", "HEAD"}:
        answer = await health.answer(path)
    else:
        answer = Answer(status=405, body=b'{"status":"only GET is answered"}\n')
    writer.write(
        b"HTTP/1.1 %d %s\r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n"
        b"cache-control: no-store\r\nx-content-type-options: nosniff\r\n\r\n"
        % (answer.status, b"OK" if answer.status == _OK else b"-", answer.kind.encode(), len(answer.body))
    )
    if method != "HEAD":
        writer.write(answer.body)
    await writer.drain()


_OK: Final = 200
_UNAVAILABLE: Final = 503


def _answer(faults: Mapping[str, str]) -> Answer:
    if not faults:
        return Answer(status=_OK, body=b'{"status":"ok"}\n')
    body = json.dumps({"status": "unwell", "faults": faults}).encode() + b"\n"
    return Answer(status=_UNAVAILABLE, body=body)


async def _probed(probe: Probe) -> str | None:
    """What is wrong, or None; of an error that is not `Unhealthy` only its kind is told."""
    try:
        async with asyncio.timeout(PROBE_SECONDS_MAX):
            await probe()
    except Unhealthy as error:
        return str(error)
    except TimeoutError:
        return f"no answer in {PROBE_SECONDS_MAX:.0f} s"
    except Exception as error:  # noqa: BLE001  whatever it is, it is not well
        return type(error).__name__
    return None
