"""Makes one call for one line: fetches a line in the store, calls the server, and judges the answer."""

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from tidemill.processors.answer_check import AnswerCheck, AnswerChecks
from tidemill.processors.backends.backend import Backend, Permit
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.backends.server import CallOptions
from tidemill.processors.calls import request_codec, spans
from tidemill.processors.calls.body_rules import UNCHANGED, BodyRules
from tidemill.processors.calls.endpoint_probe import STATUSES, EndpointProbe
from tidemill.processors.calls.forms import CONTENT_TYPE, Forms
from tidemill.processors.calls.health_probe import HealthProbe
from tidemill.processors.calls.request_codec import Success
from tidemill.processors.failures import (
    NO_EVIDENCE,
    NOT_FETCHED,
    Answer,
    CallFailure,
    Evidence,
    FailureKind,
    Fault,
    History,
)
from tidemill.processors.http.client import HttpUpstream
from tidemill.processors.lines import Line
from tidemill.processors.memory_budget import SMALL_BYTES
from tidemill.schemas import UNREADABLE
from tidemill.schemas import headers as forwarded
from tidemill.schemas.endpoints import ENDPOINTS, UNKNOWN, Endpoint, address
from tidemill.schemas.jsonl import line as shapes
from tidemill.schemas.jsonl.attachments import AttachmentError
from tidemill.schemas.ports import Clock, NotFound, Store, read_all
from tidemill.sealing.wrapping import KeyUnavailable

WARN_SECONDS: Final = 30.0
"""Time between two warnings that a server rejects our calls."""
NO_CUSTOM_ID: Final = b"null"
_KINDS: Final = (
    ((*UNREADABLE, AttachmentError), FailureKind.INVALID_LINE),
    (NotFound, FailureKind.INPUT_GONE),
    (KeyUnavailable, FailureKind.KEY),
    (OSError, FailureKind.STORE),
)
"""The kind of failure for each error that prevents a call; any other error is a bug in Tidemill."""

_log = logging.getLogger(__name__)


class CallResult(NamedTuple):
    """The result of a call."""

    custom_id: bytes
    """JSON text."""
    end: Success | CallFailure
    evidence: Evidence = NO_EVIDENCE
    """What other calls show about the server, if the call failed."""


class Caller:
    """Makes the calls of one model."""

    def __init__(
        self,
        *,
        pool: BackendPool,
        endpoint_probe: EndpointProbe,
        upstream: HttpUpstream,
        store: Store,
        clock: Clock,
        forms: Forms,
        seconds_max: float,
        rules: BodyRules = UNCHANGED,
    ) -> None:
        """Connect nothing; a call takes at most `seconds_max`. Needs a running event loop."""
        self._now = asyncio.get_running_loop().time
        self.pool = pool
        self._endpoint_probe = endpoint_probe
        self._upstream = upstream
        self._store = store
        self.checks = AnswerChecks(store)
        self._clock = clock
        self._forms = forms
        self._seconds_max = seconds_max
        self._rules = rules

    async def make(self, line: Line, permit: Permit) -> CallResult:
        """Call once with the permit, which covers this call only; never raises."""
        custom_id = NO_CUSTOM_ID
        try:
            text = line.text
            if (ref := line.head.ref) is not None:
                text = await read_all(self._store.read(ref.key, ref.offset, ref.offset + ref.length))
            parsed = shapes.parse(text)
            custom_id = bytes(parsed.custom_id)
            if line.head.validated and line.check is None:
                line.check = await self.checks.learn(line.head.batch_id)
            outcome = await self.post(line, parsed.body, permit.backend)
        except BaseException as error:
            # An aborted call may have been sent.
            self.pool.release(permit, is_sent=not isinstance(error, Exception))
            if not isinstance(error, Exception):
                raise
            return self._not_made(error, line, custom_id, permit)
        return await self.judge(line, permit, custom_id, outcome)

    def begin(
        self, line: Line, permit: Permit, on_end: Callable[[Line, Permit, bytes, Answer | FailureKind], None]
    ) -> Callable[[], None] | None:
        """Begin a call without a task, if it need not wait for anything first; returns a function that aborts it.

        `on_end` gets the arguments of `judge_small` and `judge`, and is never called before this returns.

        Returns:
            None if `make` must make the call.
        """
        server, head = permit.backend.server, line.head
        endpoint = ENDPOINTS.get(head.url, UNKNOWN)
        if head.ref is not None or endpoint.files or (server.headroom is not None and server.headroom.pause):
            return None
        try:
            if head.validated and line.check is None:
                line.check = self.checks.known(head.batch_id)
                if line.check is None:
                    return None
            parsed = shapes.parse(line.text)
            body = self._sent(parsed.body, line, server.options, endpoint)
            end = functools.partial(on_end, line, permit, bytes(parsed.custom_id))
            request = self._request(line, permit.backend, server.options.headers, body)
            return self._upstream.begin(*request, on_end=end)
        except Exception:  # noqa: BLE001  `make` fails in the same way, and reports it
            return None

    def judge_small(
        self, line: Line, permit: Permit, custom_id: bytes, outcome: Answer | FailureKind
    ) -> CallResult | None:
        """The result of a call that succeeded with a small answer; None if `judge` must judge the outcome."""
        try:
            if isinstance(outcome, FailureKind) or outcome.share is not None:
                return None
            end = request_codec.judge(outcome, line.head.url)
            if isinstance(end, CallFailure) or (line.check is not None and not line.check.is_small(end.body)):
                return None
        except Exception:  # noqa: BLE001  `judge` fails in the same way, gives the permit back, and reports it
            return None
        try:
            self._answered(line, permit, end)
            fault = None if line.check is None else line.check.fault(line.head.url, end.body)
            return self.result_of(line, permit, custom_id, end, fault)
        except Exception as error:  # noqa: BLE001  a bug in Tidemill must not lose a line
            return self._not_made(error, line, custom_id, permit)

    async def judge(
        self, line: Line, permit: Permit, custom_id: bytes, outcome: Answer | FailureKind
    ) -> CallResult:
        """Judge the outcome of a call; never raises."""
        try:
            return await self._judged(line, permit, custom_id, outcome)
        except Exception as error:  # noqa: BLE001  a bug in Tidemill must not lose a line
            return self._not_made(error, line, custom_id, permit)

    def health_probe(self, on_change: Callable[[], None], wait_seconds: float) -> HealthProbe:
        """A health probe for the model's servers."""
        model = self._endpoint_probe.model
        return HealthProbe(model, self.pool, self._upstream, on_change, wait_seconds, rules=self._rules)

    async def _judged(
        self, line: Line, permit: Permit, custom_id: bytes, outcome: Answer | FailureKind
    ) -> CallResult:
        share = outcome.share if isinstance(outcome, Answer) else None
        try:
            if share is not None:
                end = await asyncio.to_thread(request_codec.judge, outcome, line.head.url)
            else:
                end = request_codec.judge(outcome, line.head.url)
            if isinstance(end, CallFailure) and end.answer is not None and end.answer.status in STATUSES:
                end = await self.checked_endpoint(end, line, permit)
        except BaseException:
            self.pool.release(permit, is_sent=True)
            if share is not None:
                share.close()
            raise
        if isinstance(end, CallFailure):
            return self.failed(line, custom_id, permit, end, line.history)
        if line.check is None:
            self._answered(line, permit, end)
            return CallResult(custom_id, end)
        try:
            fault = await self._fault(line, line.check, permit, end)
            return self.result_of(line, permit, custom_id, end, fault)
        except BaseException:
            if end.share is not None:
                end.share.close()
            raise

    async def _fault(self, line: Line, check: AnswerCheck, permit: Permit, end: Success) -> str | None:
        """Free the seat of a call, then return why its answer does not fit its schema; None if it fits."""
        try:
            await self.checks.room.acquire()
        except BaseException:
            self.pool.release(permit, is_sent=True)
            raise
        try:
            self._answered(line, permit, end)
            if not check.is_small(end.body):
                self.pool.fill()
            return await self.checks.fault(check, line.head.url, end.body)
        finally:
            self.checks.room.release()

    def _answered(self, line: Line, permit: Permit, end: Success) -> None:
        """Free the seat of a call with a good answer; its text may have a fault, but the server is well."""
        self.pool.answered(permit, self._now(), used(end), endpoint=line.head.url, begun=line.began_at)

    def result_of(
        self, line: Line, permit: Permit, custom_id: bytes, end: Success, fault: str | None
    ) -> CallResult:
        """The result of a good answer, or of one whose text has a fault."""
        if fault is None:
            return CallResult(custom_id, end)
        return CallResult(custom_id, self.locate(request_codec.unfit(end, fault), line, permit))

    async def post(self, line: Line, body: msgspec.Raw, backend: Backend) -> Answer | FailureKind:
        """Send a body with the headers of a line; returns the outcome, not judged yet."""
        if (headroom := backend.server.headroom) is not None and (pause := headroom.pause):
            await asyncio.sleep(pause)
        options, endpoint = backend.server.options, ENDPOINTS.get(line.head.url, UNKNOWN)
        if not endpoint.files:
            call = self._upstream.post(
                *self._request(line, backend, options.headers, self._sent(body, line, options, endpoint))
            )
            del body  # No name keeps it in memory during the call.
            return await call
        async with self._forms.form(
            endpoint, self._sent(body, line, options, endpoint), line.head.project
        ) as form:
            request = self._request(line, backend, {**options.headers, **CONTENT_TYPE}, memoryview(form))
            return await self._upstream.post(*request)

    def _request(
        self, line: Line, backend: Backend, headers: dict[str, str], body: bytes | memoryview
    ) -> tuple[str, dict[str, str], bytes | memoryview, float, bytes]:
        """The arguments of `HttpUpstream.post`: address, headers, body, seconds, and header lines of this call."""
        more = _header_lines(line, backend.server.options, self._clock)
        if line.head.traceparent is not None:
            more += spans.header(line, backend, self.pool.model, self._now())
        return address(backend.base, line.head.url), headers, body, self._seconds_max, more

    async def checked_endpoint(self, failure: CallFailure, line: Line, permit: Permit) -> CallFailure:
        """The failure, or another one if no server of the model serves the endpoint."""
        if await self._endpoint_probe.lacks(line.head.url, permit.backend):
            return request_codec.unserved(failure, line.head.url)
        return failure

    def failed(
        self, line: Line, custom_id: bytes, permit: Permit, failure: CallFailure, before: History | None
    ) -> CallResult:
        """The result of a failed call, which ends; `before` has the failed calls before it, if there are any."""
        failure = self.locate(failure, line, permit)
        if failure.kind is FailureKind.CONNECT:
            server = permit.backend.server
            cause = self._upstream.fault(address(permit.backend.base, line.head.url), server.options.headers)
            failure = request_codec.located(failure, cause=cause)
        evidence = self.pool.failed(permit, failure, before)
        backend = permit.backend
        is_refused = failure.fault is Fault.ACCESS_OR_LINE and backend.breaker.failures
        if is_refused and failure.at >= backend.warned_at + WARN_SECONDS:
            backend.warned_at = failure.at
            _log.warning(
                "server %s rejects calls for %s with status %s. Check its key, and the model's name there.",
                backend.server.name, self._endpoint_probe.model, failure.status,
            )  # fmt: skip
        return CallResult(custom_id, failure, evidence)

    def _not_made(self, error: Exception, line: Line, custom_id: bytes, permit: Permit) -> CallResult:
        """A call that was not made: the line, the store or this process is at fault, not a server."""
        kind = next((kind for kinds, kind in _KINDS if isinstance(error, kinds)), FailureKind.INTERNAL)
        if kind in NOT_FETCHED:
            _log.warning("a line of %s cannot be fetched: %s", line.head.batch_id, type(error).__name__)
        failure = self.locate(CallFailure(kind, request_codec.UNANSWERED[kind]), line, permit)
        if kind is not FailureKind.INTERNAL:
            return CallResult(custom_id, failure)
        _log.error("a call for line %d of %s failed", line.index, line.head.batch_id, exc_info=error)
        others_answered = bool(self.pool.that_answered(failure.endpoint, failure.since))
        other_is_well = self.pool.has_other(permit.backend)
        return CallResult(custom_id, failure, Evidence(others_answered, other_is_well=other_is_well))

    def locate(self, failure: CallFailure, line: Line, permit: Permit) -> CallFailure:
        """The failure with its server, endpoint, line and time."""
        retry_after = failure.answer.retry_after if failure.answer else None
        return request_codec.located(
            failure,
            server=permit.backend.server.name,
            endpoint=line.head.url,
            line=(line.head.batch_id, line.index),
            since=line.since,
            at=self._now(),
            retry_after=request_codec.wait_seconds(retry_after, self._clock()),
        )

    def _sent(self, body: msgspec.Raw, line: Line, options: CallOptions, endpoint: Endpoint) -> bytes | memoryview:
        """The body to send; a large one is not copied."""
        has_priority = options.priority_by_deadline and endpoint.has_priority
        view = memoryview(self._rules.apply(body, line.head.deadline if has_priority else None))
        return bytes(view) if len(view) <= SMALL_BYTES else view


def used(end: Success) -> int:
    """The tokens of a line, of prompt and answer; 0 if the server names impossible counts."""
    return end.tokens[0] + end.tokens[2] if end.tokens else 0


def count_call(line: Line, backend: Backend, end: Success | CallFailure | None) -> None:
    """Count an ended call, and end the span of its first line; `end` is None if the reply fits no line."""
    if line.span is not None:
        spans.end(line, end)
    wait = line.began_at - line.entries[0].published_at if line.attempts == 1 else None
    if isinstance(end, Success):
        backend.metrics.answered(line.head.url, line.seconds, end.answer.first_byte, wait, used(end))
    elif end is None:
        backend.metrics.refused(line.head.url, line.seconds)
    else:
        backend.metrics.failed(line.head.url, end, line.seconds, wait)


def _header_lines(line: Line, options: CallOptions, clock: Clock) -> bytes:
    """The headers of one call: its id, the line's time, and those of the client that the server has not set."""
    head = line.head
    named = b"x-request-id: %b\r\n" % request_codec.sent_id(head.batch_id, line.index, line.attempts).encode()
    if options.deadline_header is not None:
        milliseconds = max(0, int(1000 * (head.deadline - clock())))
        named += b"%b: %d\r\n" % (options.deadline_header.encode(), milliseconds)
    if head.headers:
        ours = {name.lower() for name in (*options.headers, options.deadline_header or "")}
        named += forwarded.lines({name: value for name, value in head.headers.items() if name not in ours})
    return named
