"""The health endpoints of a process: `/livez`, `/readyz` and `/metrics`.

`/livez` probes nothing outside the process: an unavailable broker is no reason to restart it. `/readyz` probes all
dependencies, and caches the result so that frequent requests cost little; `?exclude=kafka` leaves out a probe.
"""

import asyncio
import functools
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs

from tidemill.runtime.connections import Connection, ConnectionTable
from tidemill.schemas.ports import Store, once
from tidemill.storage.owner import StoreOwner

log = logging.getLogger(__name__)

PROBE_SECONDS_MAX: Final = 5.0
"""A probe fails after this time."""
CACHE_SECONDS: Final = 2.0
"""How long the probes' results are cached."""
HEAD_BYTES_MAX: Final = 8 * 1024
REQUEST_SECONDS_MAX: Final = 10.0
CONNECTIONS_MAX: Final = 64
"""A further connection closes the one that has been idle for longest."""

Probe = Callable[[], Awaitable[object]]
"""Raises if a dependency is unhealthy."""


class Unhealthy(Exception):
    """A dependency is unhealthy; the text is public, so it contains no secret and no text of users."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes
    kind: str = "application/json"


class Health:
    """The answers of the health endpoints.

    `fault` returns the fault of the process itself, without waiting; `metrics` the text of `/metrics` and its
    content type.
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
        self._found: dict[str, tuple[str | None, float]] = {}
        """By probe, its last fault, and when that was found."""
        self._probing = {name: asyncio.Lock() for name in probes}

    async def answer(self, path: str, excluded: Collection[str] = ()) -> Answer:
        """Answer a GET of a path; `/readyz` leaves out the `excluded` probes."""
        match path:
            case "/livez":
                return _answer(self._own_fault())
            case "/readyz":
                return _answer(await self._probe(excluded) | self._own_fault())
            case "/metrics":
                text, kind = self._metrics()
                return Answer(status=200, body=text, kind=kind)
            case _:
                return Answer(status=404, body=b'{"status":"not found"}\n')

    async def _probe(self, excluded: Collection[str]) -> dict[str, str]:
        names = [name for name in self._probes if name not in excluded]
        found = await asyncio.gather(*map(self._fault_of, names))
        return {name: fault for name, fault in zip(names, found, strict=True) if fault is not None}

    async def _fault_of(self, name: str) -> str | None:
        async with self._probing[name]:
            fault, at = self._found.get(name, (None, float("-inf")))
            if time.monotonic() - at >= CACHE_SECONDS:
                fault = await _probed(self._probes[name])
                self._found[name] = fault, time.monotonic()
        return fault

    def _own_fault(self) -> dict[str, str]:
        fault = self._fault()
        return {} if fault is None else {"process": fault}


@asynccontextmanager
async def serve(health: Health, host: str, port: int) -> AsyncIterator[None]:
    """Serve the endpoints within the block; port 0 serves none.

    A port in use is logged and does not stop the process.
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


async def check(fault: Callable[[], str | None]) -> None:
    """Probe what knows its own fault; raises `Unhealthy` with it."""
    if (found := fault()) is not None:
        raise Unhealthy(found)


async def check_store(store: Store, name: str, owner: StoreOwner | None = None) -> None:
    """Probe a store by writing an object with this name, which the next probe overwrites.

    Raises:
        OSError: The store failed.
        Unhealthy: It belongs to another log.
    """
    if owner is not None and owner.fault is not None and owner.is_foreign:
        raise Unhealthy(owner.fault.text)
    await store.write(f"health/{name}", once(b"well\n"))


async def _exchange(
    health: Health, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, set_busy: Callable[[], bool]
) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
    path, _, query = rest.partition(" ")[0].partition("?")
    # Liveness needs no wait, so it is answered even with too many busy connections.
    if not set_busy() and path != "/livez":
        answer = Answer(status=_UNAVAILABLE, body=b'{"status":"too many requests"}\n')
    elif method in {"GET", "HEAD"}:
        answer = await health.answer(path, parse_qs(query).get("exclude", ()))
    else:
        answer = Answer(status=405, body=b'{"status":"only GET is allowed"}\n')
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
    body = json.dumps({"status": "unhealthy", "faults": faults}).encode() + b"\n"
    return Answer(status=_UNAVAILABLE, body=body)


async def _probed(probe: Probe) -> str | None:
    """The fault that a probe finds, or None; only `Unhealthy` shows its text, other errors their kind."""
    try:
        async with asyncio.timeout(PROBE_SECONDS_MAX):
            await probe()
    except Unhealthy as error:
        return str(error)
    except TimeoutError:
        return f"no answer in {PROBE_SECONDS_MAX:.0f} s"
    except Exception as error:  # noqa: BLE001  any error is a fault
        return type(error).__name__
    return None
