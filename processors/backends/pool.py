"""The servers of a model: decides which of them takes the next call, if any does.

All times are seconds of the event loop's clock, which no step of the wall clock changes.

All models share what one of them learns about the health of a server (`server.py`). Whether a line is at fault
depends on its model's calls alone: a server that answers one adapter may lack another. So each model has its own
breaker at each server, for failures that may come from the model there, and remembers which of its calls were
answered.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from tidemill.processors.backends.backend import NEVER, NO_PROBES, Backend, Permit, Probes
from tidemill.processors.backends.call_metrics import LineCounts
from tidemill.processors.backends.clocks import TurnClocks
from tidemill.processors.backends.permit_queue import Contender, NextLine
from tidemill.processors.backends.server import Seats, Server
from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.failures import NO_EVIDENCE, CallFailure, Evidence, Fault, History

STEP: Final = 1 / 16
"""The weight of one call in a moving average."""
REFUSED_PART_MAX: Final = 0.25
"""A server that refuses a larger part of the calls counts as full."""
FAILED_PART_MAX: Final = 0.25
"""If a larger part of the lines fails, the next lines are picked at random."""


def _refund(permit: Permit) -> None:
    for bucket, taken in permit.taken:
        bucket.give_back(taken)


class BackendPool(Seats):
    """The servers of one model, and its seats at all of them together."""

    def __init__(
        self,
        backends: list[Backend],
        model: str = "",
        *,
        calls_max: int | None = None,
        clocks: TurnClocks | None = None,
    ) -> None:
        """Start without calls in flight.

        Args:
            backends: The servers; without any, lines wait.
            model: The model's name in the settings.
            calls_max: Calls that all processes together may have in flight; by default as many as the servers
                allow.
            clocks: Of projects, shared with the models that share servers with this one.
        """
        super().__init__(calls_max=0)
        self.paused = False
        """Whether the model gets no more calls."""
        self.unresolved: Sequence[str] = ()
        """Names of servers that have no address now."""
        self.clocks = clocks or TurnClocks()
        self.bucket: TokenBucket | None = None
        """The model's limit of tokens a minute."""
        self.changed: Callable[[], None] = lambda: None
        """To call after `configure`."""
        self.model = model
        self.line_counts = LineCounts(model)
        self._contender: Contender | None = None
        self._is_divided = False
        """Whether `part` has been set."""
        self._set(backends, calls_max)

    def configure(self, servers: Sequence[Server], *, calls_max: int | None, now: float) -> None:
        """Set the servers and the bound; `bucket` is set before, and `changed` called afterwards.

        Args:
            servers: The servers. A call that is in flight at another one finishes.
            calls_max: See `__init__`.
            now: The time.
        """
        known = {backend.server: backend for backend in self.backends}
        backends = []
        for server in servers:
            if (backend := known.pop(server, None)) is None:
                backend = Backend(server)
                if self._contender is not None:
                    server.queue.join(self._contender)
                if self._is_divided:
                    # No call may start before the whole change is there: `changed` tells the queues.
                    server.take_part(self.part, now)
            backend.buckets = tuple(one for one in (server.bucket, self.bucket) if one is not None)
            backends.append(backend)
        for gone in known.values():
            gone.is_gone = True
            if self._contender is not None:
                gone.server.queue.leave(self._contender)
        self._set(backends, calls_max)

    def _set(self, backends: list[Backend], calls_max: int | None) -> None:
        self.backends = backends
        calls = sum(backend.server.calls_max for backend in backends)
        calls_max = calls_max or calls
        results = sum(backend.server.unacknowledged_max for backend in backends)
        # A model's share of the calls is also its share of the results.
        self.resize(calls_max, results * calls_max // calls if calls_max < calls else results, self.part)

    @property
    def awaits_log(self) -> bool:
        """Whether another call would start if the log acknowledged results."""
        return super().awaits_log or (bool(self.called) and all(one.server.awaits_log for one in self.called))

    @property
    def called(self) -> Sequence[Backend]:
        """The backends that get calls; if none does, all."""
        return [backend for backend in self.backends if not backend.server.drain] or self.backends

    def join(
        self,
        next_line: Callable[[], NextLine | None],
        start: Callable[[], bool],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Let the model take turns with the other models of its servers.

        Args:
            next_line: See `Contender`.
            start: See `Contender`.
            changed: Called when the servers, their limits or the clocks have changed.
        """
        self.changed = changed
        self._contender = Contender(next_line, start)
        for backend in self.backends:
            backend.server.queue.join(self._contender)

    @property
    def is_joined(self) -> bool:
        """Whether the model has a dispatcher, and so may have lines."""
        return self._contender is not None

    def leave(self) -> None:
        """Undo `join`: the model has no line to call."""
        if self._contender is not None:
            for backend in self.backends:
                backend.server.queue.leave(self._contender)
        self._contender = None
        self.changed = lambda: None

    def set_part(self, part: float, now: float) -> None:
        """Set this process's part of the partitions, 0 <= part <= 1."""
        self._is_divided = True
        self.resize(self.calls_max, self.unacknowledged_max, part)
        if self.bucket is not None:
            self.bucket.set_part(part, now)
        for backend in self.backends:
            backend.server.set_part(part, now)

    def acquire(
        self,
        now: float,
        *,
        avoid: Backend | None = None,
        among: Sequence[Backend] | None = None,
        probes: bool = True,
    ) -> Permit | None:
        """A permit at the server with the lowest load for its limit; None if no server takes a call.

        If other models wait for a server, the model gets a permit there only in its turn.

        Args:
            now: The time.
            avoid: A backend to take only if no other is well.
            among: The backends to choose from.
            probes: Whether the call may be a probe.
        """
        if self.in_flight >= self.seats:
            return None
        best = None
        load = 0.0
        if avoid is not None and not self.has_other(avoid):
            avoid = None
        for backend in self.backends if among is None else among:
            if backend is avoid or (not probes and backend.is_paused):
                continue
            server = backend.server
            server.limit.tick(server.in_flight, now)
            queue = server.queue
            if (room := backend.room(now)) <= server.in_flight or (
                queue.waiting and queue.blocks(self._contender)
            ):
                continue
            weight = server.in_flight / room
            if best is None or weight < load:
                best, load = backend, weight
        if best is None:
            for backend in self.backends:
                backend.server.queue.wait(self._contender)
            return None
        if not best.is_paused:
            return self._begun(best, NO_PROBES)
        return self._begun(best, Probes(best.server.breaker.sent(now), best.breaker.sent(now)))

    def acquire_health_probe(self, backend: Backend, now: float) -> Permit | None:
        """A permit at one server, even while a breaker is open for what may be the fault of lines."""
        server = backend.server
        if self.paused or backend.is_gone or server.drain:
            return None
        if self.in_flight >= self.in_flight_max:
            return None
        if server.in_flight >= server.allowed(now):
            server.queue.wait(self._contender)
            return None
        if not all(breaker.is_doubtful or breaker.admits(now) for breaker in backend.breakers):
            return None
        return self._begun(backend, Probes(*(not one.is_doubtful and one.sent(now) for one in backend.breakers)))

    def _begun(self, backend: Backend, probes: Probes) -> Permit:
        server = backend.server
        self.in_flight += 1
        server.in_flight += 1
        backend.in_flight += 1
        if server.queue.waiting:
            server.queue.started(self._contender)
        return Permit(backend, server.limit.sent(server.in_flight), probes)

    def _ended(self, backend: Backend) -> None:
        self.in_flight -= 1
        backend.in_flight -= 1
        server = backend.server
        server.in_flight -= 1
        if server.queue.waiting:
            server.queue.ended(self._contender)

    def fill(self) -> None:
        """Start calls in free seats, before the calls that left them have results."""
        while self._contender is not None and self._contender.start():
            pass

    def settled(self, backend: Backend) -> None:
        """Note that a call has a result that the log does not have yet."""
        self.unacknowledged += 1
        backend.server.unacknowledged += 1

    def acknowledged(self, backends: Iterable[Backend]) -> None:
        """The log has acknowledged results of calls at these servers, one of each."""
        waited_for = set()
        for backend in backends:
            self.unacknowledged -= 1
            backend.server.unacknowledged -= 1
            if backend.server.queue.waiting:
                waited_for.add(backend.server)
        for server in waited_for:
            server.queue.ended(self._contender)

    @property
    def well(self) -> int:
        """Backends that take calls."""
        return sum(backend.is_well for backend in self.backends)

    def has_other(self, backend: Backend) -> bool:
        """Whether another backend is well."""
        return any(other.is_well and other is not backend for other in self.backends)

    def that_answered(self, endpoint: str, since: float) -> list[Backend]:
        """The backends that gave a good answer to a call of an endpoint that began after a time."""
        return [backend for backend in self.backends if backend.has_answered(endpoint, since)]

    @staticmethod
    def charge(permit: Permit, size: int, lines: int = 1) -> Permit:
        """Take the tokens that lines of `size` bytes are expected to use; returns the permit to go on with."""
        if not (buckets := permit.backend.buckets):
            return permit
        taken = tuple((bucket, bucket.take(size, lines)) for bucket in buckets)
        return permit._replace(size=size, lines=lines, taken=taken)

    def opens_at(self, now: float) -> float | None:
        """When a server may take a call again; None if only the end of a call can change that."""
        times = (at for backend in self.backends for at in backend.opens_at(now) if at > now)
        return min(times, default=None)

    def release(self, permit: Permit, *, is_sent: bool = False) -> None:
        """End a call that was not made, or was aborted; one that was already sent may have used tokens."""
        self._ended(permit.backend)
        for breaker, is_probe in zip(permit.backend.breakers, permit.probes, strict=True):
            breaker.released(is_probe=is_probe)
        if not is_sent:
            _refund(permit)

    def answered(
        self, permit: Permit, now: float, tokens: int = 0, *, endpoint: str | None = None, begun: float = NEVER
    ) -> None:
        """The server answered the call.

        Args:
            permit: The call's.
            now: The time.
            tokens: Used by the call; 0 if the server does not say, which leaves the estimate as it is.
            endpoint: The line's, if it was answered well; None if the answer is an error of the line's.
            begun: When the call began.
        """
        backend = permit.backend
        server = backend.server
        if tokens:
            for bucket, taken in permit.taken:
                bucket.settle(taken, tokens, permit.size, permit.lines)
        server.limit.answered(permit.slot, now)
        server.breaker.answered()
        backend.breaker.answered()
        server.refused_part -= server.refused_part * STEP
        backend.failed_part -= backend.failed_part * STEP
        backend.failed_line = None
        self._ended(backend)
        if endpoint is not None and begun > backend.answered_at.get(endpoint, NEVER):
            backend.answered_at[endpoint] = begun

    def failed(self, permit: Permit, failure: CallFailure, history: History | None = None) -> Evidence:
        """Note that the call failed, and adjust the limit and the breakers of its server.

        Args:
            permit: The call's.
            failure: What happened.
            history: The failed calls of the line before this one, if there are any.

        Returns:
            The evidence about the server, for the decision about the line.
        """
        if failure.fault is Fault.LINE:
            self.answered(permit, failure.at)
            return NO_EVIDENCE
        backend = permit.backend
        server = backend.server
        others_answered = backend.has_answered(failure.endpoint, failure.since)
        if failure.fault is Fault.ACCESS_OR_LINE:
            others_answered |= backend.accepted_at.get(failure.endpoint, NEVER) > failure.since
        # The answers of a removed server prove nothing about a call that failed as it was removed.
        others_answered &= not backend.is_gone
        refuses_repeatedly = server.limit.is_pressed
        self._ended(backend)
        if failure.fault is not Fault.SERVER_OR_LINE or failure.is_overload:
            # A call that broke off may have used tokens.
            _refund(permit)
        # A line that failed while others were answered proves nothing about the server, nor does a repeated
        # failure.
        is_suspected = history is not None and (others_answered or history.counted > 0)
        is_new = not is_suspected and failure.line != backend.failed_line
        backend.failed_line = failure.line
        self._tell_limit(permit, failure, is_new=is_new)
        if is_new:
            backend.failed_part += (1 - backend.failed_part) * STEP
            server.refused_part += (failure.is_overload - server.refused_part) * STEP
        counts = is_new and not self._is_accident(permit, failure)
        self._tell_server_breaker(permit, failure, counts=counts)
        self._tell_model_breaker(permit, failure, counts=counts)
        return Evidence(
            others_answered,
            server.refused_part > REFUSED_PART_MAX,
            refuses_repeatedly,
            self.has_other(backend),
        )

    @staticmethod
    def _tell_limit(permit: Permit, failure: CallFailure, *, is_new: bool) -> None:
        server = permit.backend.server
        if failure.is_servers_word:
            server.limit.answered(permit.slot, failure.at)
        elif is_new and failure.is_full and (server.in_flight or not permit.probes.server):
            # A server that refuses a single probe is down: the refusal does not show how many calls it takes.
            server.limit.refused(permit.slot, server.in_flight, failure.at, late=failure.is_timeout)

    @staticmethod
    def _is_accident(permit: Permit, failure: CallFailure) -> bool:
        """Whether it is a rare refusal, which opens no breaker; a trial's is rare only if no call is in flight."""
        server = permit.backend.server
        return failure.is_full and not server.limit.is_pressed and not (permit.slot.trial and server.in_flight)

    @staticmethod
    def _tell_server_breaker(permit: Permit, failure: CallFailure, *, counts: bool) -> None:
        server, is_probe = permit.backend.server, permit.probes.server
        breaker = server.breaker
        if failure.fault is Fault.ACCESS_OR_LINE:
            # The server answers; it refuses the model, or the key.
            if is_probe:
                breaker.answered()
            return
        if not is_probe and not counts:
            return
        was_open = breaker.is_open
        breaker.failed(failure, is_probe=is_probe, in_flight=server.in_flight)
        # A server that has calls under way and refuses another is full, and not down.
        if breaker.is_open and not was_open and not (failure.is_full and server.in_flight):
            server.limit.halve()

    @staticmethod
    def _tell_model_breaker(permit: Permit, failure: CallFailure, *, counts: bool) -> None:
        backend, is_probe = permit.backend, permit.probes.model
        if failure.fault is Fault.SERVER or failure.is_overload:
            # The failure proves nothing about the model.
            backend.breaker.released(is_probe=is_probe)
        elif is_probe or counts:
            backend.breaker.failed(failure, is_probe=is_probe, in_flight=backend.in_flight)
