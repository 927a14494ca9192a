"""The load of servers and models: the latest reports of all processors processes, and their sums.

A report counts for `STALE_SECONDS` from its arrival, so the figures of a process that was killed vanish, and those
of one that ends do at once. Only a report that the log had before this process followed it has an age then.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel

from tidemill import metrics
from tidemill.bounded_dict import BoundedDict
from tidemill.schemas.log import codec
from tidemill.schemas.ports import Clock, Monotonic
from tidemill.schemas.resources.load import (
    STALE_SECONDS,
    BreakerState,
    Cause,
    ModelLoad,
    ProcessReport,
    ServerLoad,
    added,
    quantile,
)
from tidemill.schemas.resources.waiting import USUAL

PROCESSES_MAX: Final = 1_000
"""Processes whose reports the api keeps."""
SHOWN_MAX: Final = 256
"""Servers, and models, of one event: those with the most calls and lines."""
_WORST: Final = (BreakerState.OPEN, BreakerState.PROBING, BreakerState.CLOSED)


class Times(BaseModel):
    """Half of the calls of the last minute took at most `p50` seconds, and 99 of 100 at most `p99`."""

    p50: float | None
    p99: float | None


class Load(BaseModel):
    """A server's load. Calls and rates are those of Tidemill; `queued` and `running` are all of the server."""

    limit: int
    """Calls that may be in flight now: the concurrency limit."""
    in_flight: int
    """Calls in flight."""
    refused: int
    """Calls that it refused because it was full, in the last minute."""
    queued: int | None
    """Requests that wait in the server, of all its clients; null if its metrics do not say so."""
    running: int | None
    """Requests that it works on."""
    lines_waiting: int
    """Lines that wait for a call; one that two servers could take counts at both."""
    lines_per_second: float
    tokens_per_second: float
    """Tokens of prompts and answers."""
    duration_seconds: Times
    first_byte_seconds: Times
    """Until the head of the reply; with a stream, about the time to the first token."""
    breaker: BreakerState
    cause: Cause | None
    """Why lines wait for it, or why it gets no calls."""


class ProcessLoad(Load):
    """The same, as one process sees it."""

    process: str
    """Its host and process id."""
    server: str
    """The server's name, followed by `@` and the address if addresses are discovered."""
    at: int
    """When it reported."""


class SharedLoad(Load):
    """The same, of all processes."""

    processes: list[ProcessLoad]


class ModelCalls(BaseModel):
    """A model's load, of all processes."""

    in_flight: int
    """Calls in flight."""
    lines_waiting: int
    """Lines that wait for a call."""
    lines_per_second: float
    cause: Cause | None
    """Why none of its servers takes a call of it, if so."""


class LoadEvent(BaseModel):
    """The load of servers and models by name, without the parts of the processes."""

    object: Literal["load"] = "load"
    servers: dict[str, Load]
    models: dict[str, ModelCalls]
    processes: int
    """Processes that report."""


M = TypeVar("M", Load, ModelCalls)
_decode: codec.Decoder[ProcessReport] = codec.decoder(ProcessReport)
_Part = tuple[str, ServerLoad, float]
"""A server as a process sees it: the process, the figures, and the time of the report."""


class Loads:
    """The latest reports."""

    def __init__(
        self,
        clock: Clock,
        names: Callable[[], Container[str]],
        changed: Callable[[], object] = lambda: None,
        *,
        monotonic: Monotonic = time.monotonic,
    ) -> None:
        """Know no process; `names` are those of the settings, and `changed` is called at each report."""
        self._clock = clock
        self._monotonic = monotonic
        self._names = names
        self._changed = changed
        self._reports: BoundedDict[str, tuple[ProcessReport, float, float]] = BoundedDict(PROCESSES_MAX)
        """The latest report of each process, with the time of its record, and until when it counts."""
        self._limits: tuple[int, list[tuple[str, int]]] = 0, []
        """Servers and their limits in each process, with the time for which they were listed."""
        self._event: tuple[int, bytes] | None = None
        """The event with the time for which it was made."""

    def apply(self, process: str, value: bytes | None, at: float, *, is_old: bool = False) -> None:
        """Fold a record that the log got at a time, Unix seconds; `is_old` says that it did before this start.

        Raises:
            DecodeError: It is not a report.
        """
        age = max(0.0, self._clock() - at) if is_old else 0.0
        self._event = None
        self._reports.pop(process, None)
        if value is not None:
            self._reports[process] = _decode(value), at, self._monotonic() - age + STALE_SECONDS
        self._changed()

    def servers(self) -> dict[str, SharedLoad]:
        """The load of the servers in the settings, by name, as far as a process reports it."""
        names, parts = self._names(), defaultdict[str, list[_Part]](list)
        for report, at in self._present():
            for one in report.servers:
                # The part after the @ is an address that was discovered.
                name = one.name if one.name in names else one.name.rpartition("@")[0]
                parts[name].append((report.process, one, at))
        return {name: _shared(parts[name]) for name in sorted(parts) if name in names}

    def limit(self, servers: Container[str]) -> int | None:
        """The calls that these servers take at a time; None if no process reports on them."""
        now = int(self._clock())
        if self._limits[0] != now:
            self._limits = now, [(one.name, one.limit) for report, _ in self._present() for one in report.servers]
        found = [limit for name, limit in self._limits[1] if name in servers or name.rpartition("@")[0] in servers]
        return sum(found) if found else None

    def models(self) -> dict[str, ModelCalls]:
        """The load of models, by name."""
        parts = defaultdict[str, list[ModelLoad]](list)
        for report, _ in self._present():
            for one in report.models:
                parts[one.name].append(one)
        return {
            name: ModelCalls(
                in_flight=sum(one.in_flight for one in found),
                lines_waiting=sum(one.lines_waiting for one in found),
                lines_per_second=round(sum(one.lines_per_second for one in found), 1),
                cause=_of_model(found),
            )
            for name, found in sorted(parts.items())
        }

    def event(self) -> bytes:
        """A `LoadEvent` as JSON; the busiest servers and models, if there are many."""
        now = int(self._clock())
        if self._event is None or self._event[0] != now:
            servers = {
                name: Load.model_validate(one, from_attributes=True) for name, one in self.servers().items()
            }
            event = LoadEvent(
                servers=_busiest(servers), models=_busiest(self.models()), processes=len(self._present())
            )
            self._event = now, event.model_dump_json().encode()
        return self._event[1]

    def _present(self) -> list[tuple[ProcessReport, float]]:
        """The reports that count."""
        now = self._monotonic()
        return [(report, at) for report, at, until in self._reports.values() if now <= until]


def _busiest(found: Mapping[str, M]) -> dict[str, M]:
    names = sorted(found, key=lambda name: -found[name].in_flight - found[name].lines_waiting)[:SHOWN_MAX]
    return {name: found[name] for name in sorted(names)}


def _shared(parts: Sequence[_Part]) -> SharedLoad:
    """The sum over processes, given in the order of their reports.

    Of a server's own figures, the latest of each of its addresses count.
    """
    processes = [
        ProcessLoad(process=process, server=one.name, at=int(at), **_figures([one])) for process, one, at in parts
    ]
    latest = {one.name: one for _, one, _ in parts if one.queued is not None}
    figures = _figures([one for _, one, _ in parts])
    figures |= {
        "queued": sum(one.queued or 0 for one in latest.values()) if latest else None,
        "running": sum(one.running or 0 for one in latest.values()) if latest else None,
    }
    by_process: dict[str, int] = {}
    for process, one, _ in parts:
        # A line that waits for a server waits for each of its addresses.
        by_process[process] = max(by_process.get(process, 0), one.lines_waiting)
    figures["lines_waiting"] = sum(by_process.values())
    return SharedLoad(**figures, processes=sorted(processes, key=lambda one: (one.server, one.process)))


def _figures(loads: Sequence[ServerLoad]) -> dict[str, Any]:
    """The fields of `Load`."""
    return {
        "limit": sum(one.limit for one in loads),
        "in_flight": sum(one.in_flight for one in loads),
        "refused": sum(one.refused for one in loads),
        "queued": loads[0].queued,
        "running": loads[0].running,
        "lines_waiting": sum(one.lines_waiting for one in loads),
        "lines_per_second": round(sum(one.lines_per_second for one in loads), 1),
        "tokens_per_second": round(sum(one.tokens_per_second for one in loads), 1),
        "duration_seconds": _times(one.durations for one in loads),
        "first_byte_seconds": _times(one.first_bytes for one in loads),
        "breaker": min((one.breaker for one in loads), key=_WORST.index),
        "cause": _worst(one.cause for one in loads),
    }


def _of_model(loads: Sequence[ModelLoad]) -> Cause | None:
    """Why no process calls lines of a model; None if one with lines does.

    A process in which the model sleeps reports no cause, so processes without lines count only if none has any.
    """
    found = [one.cause for one in loads if one.in_flight or one.lines_waiting]
    return None if None in found else _worst(found or [one.cause for one in loads])


def _worst(causes: Iterable[Cause | None]) -> Cause | None:
    found = (one for one in causes if one is not None)
    return min(found, key=lambda cause: (cause.reason in USUAL, cause.since), default=None)


def _times(counts: Iterable[tuple[int, ...]]) -> Times:
    whole = added(counts)
    return Times(p50=quantile(metrics.CALL_SECONDS, whole, 0.5), p99=quantile(metrics.CALL_SECONDS, whole, 0.99))
