"""One call of one line: fetch it if it lies in the store, ask its backend, and judge the answer."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from tidemill.processors.backends.pool import REFUSING_MAX, Backend, BackendPool, Failed, Permit
from tidemill.processors.calls import request_codec
from tidemill.processors.calls.endpoint_probe import STATUSES, EndpointProbe
from tidemill.processors.calls.proof import Proof
from tidemill.processors.failures import Answer, Broken, Kind
from tidemill.processors.http.client import Upstream
from tidemill.processors.lines import Line
from tidemill.processors.memory_budget import SMALL_BYTES, Lines, Share
from tidemill.schemas.jsonl import line as shapes
from tidemill.schemas.log.codec import LineRef
from tidemill.schemas.ports import Clock, NotFound, Store

WARN_SECONDS: Final = 30.0
NO_CUSTOM_ID: Final = b"null"

_GATEWAYS: Final = frozenset({502, 504})
"""What a proxy says that had no answer from the server itself."""

_log = logging.getLogger(__name__)

_UNREADABLE: Final = request_codec.Failure("invalid_line", "The line cannot be read.")
_GONE: Final = request_codec.Failure("input_gone", "The input of this line is no longer in the store.")
_STORE_AWAY: Final = request_codec.Failure("store_unavailable", "The store could not be read.")
_FAULTY: Final = request_codec.Failure("internal_error", "The call could not be made.")


@dataclass(frozen=True, slots=True)
class CallResult:
    """A call that was made, or could not be."""

    custom_id: bytes
    """JSON text."""
    end: request_codec.Success | request_codec.Failure
    backend: Backend | None = None
    """Who was asked, where somebody was."""
    counts: bool = False
    """Whether it failed this call while it answers other lines."""
    brisk: bool = False
    """Whether it refused this call while it answers most."""
    wait_seconds: float | None = None
    """How long it asked us to wait, where that is to be taken as said to this line."""
    share: Share | None = None
    """Of the budget of replies; whoever has this closes it in the end."""


class Caller:
    """Makes the calls of one model."""

    def __init__(
        self,
        *,
        fleet: BackendPool,
        menu: EndpointProbe,
        upstream: Upstream,
        store: Store,
        lines: Lines,
        clock: Clock,
        seconds_max: float,
    ) -> None:
        """Take the doors.

        Args:
            fleet: The model's backends.
            menu: What they lack.
            upstream: The HTTP client.
            store: Where large lines lie.
            lines: How many bytes of them there may be at one time.
            clock: Unix time.
            seconds_max: How long a call may take.
        """
        self._fleet = fleet
        self._menu = menu
        self._upstream = upstream
        self._store = store
        self._clock = clock
        self._seconds_max = seconds_max
        self._lines = lines

    async def make(self, line: Line, place: Permit) -> CallResult:
        """Call once. Never raises.

        Args:
            line: What is to be called.
            place: Where; it is given back when this returns.
        """
        is_left = False
        try:
            text = line.text
            if line.head.ref is None:
                parsed = shapes.parse(text)
                is_left = True
                return await self._make(line, parsed, place)
            async with self._lines.room(line.head.ref.length):
                parsed = shapes.parse(await self._fetched(line.head.ref))
                is_left = True
                return await self._make(line, parsed, place)
        except (msgspec.MsgspecError, RecursionError):
            return CallResult(NO_CUSTOM_ID, _UNREADABLE)
        except NotFound:
            return CallResult(NO_CUSTOM_ID, _GONE)
        except OSError as error:
            _log.warning("a line of %s cannot be fetched: %s", line.head.batch_id, type(error).__name__)
            return CallResult(NO_CUSTOM_ID, _STORE_AWAY)
        except Exception:  # noqa: BLE001  a line is never lost to a fault of ours
            _log.exception("a call for line %d of %s broke off", line.index, line.head.batch_id)
            counts = bool(self._fleet.proven(line.head.url, line.mark))
            return CallResult(NO_CUSTOM_ID, _FAULTY, place.backend, counts=counts)
        finally:
            if not is_left:
                self._fleet.leave(place)

    async def _make(self, line: Line, parsed: shapes.InputLine, place: Permit) -> CallResult:
        backend = place.backend
        url = backend.base + line.head.url.removeprefix("/v1")
        seconds = min(self._seconds_max, max(line.head.deadline - self._clock(), 0.0))
        share = None
        try:
            name = request_codec.sent_id(line.head.batch_id, line.index, line.attempts)
            outcome = await self._upstream.post(url, backend.headers, _sent(parsed.body), seconds, name)
            if isinstance(outcome, Answer) and (share := outcome.share) is not None:
                end = await asyncio.to_thread(request_codec.judge, outcome, line.head.url)
            else:
                end = request_codec.judge(outcome, line.head.url)
            if isinstance(end, request_codec.Failure) and await self._finds_no_endpoint(end, line, backend):
                end = request_codec.unserved(end, line.head.url)
        except BaseException:
            self._fleet.leave(place)
            if share is not None:
                share.close()
            raise
        custom_id = bytes(parsed.custom_id)
        now = asyncio.get_running_loop().time()
        if isinstance(end, request_codec.Success) or end.kind is Kind.FINAL:
            used = end.tokens[0] + end.tokens[2] if isinstance(end, request_codec.Success) and end.tokens else 0
            endpoint = line.head.url if isinstance(end, request_codec.Success) else None
            self._fleet.answered(place, now, used, endpoint=endpoint, begun=line.begun)
            return CallResult(custom_id, end, backend, share=share)
        return replace(self._failed(line, custom_id, place, end, now), share=share)

    async def _finds_no_endpoint(self, end: request_codec.Failure, line: Line, backend: Backend) -> bool:
        if end.answer is None or end.answer.status not in STATUSES:
            return False
        return await self._menu.lacks(line.head.url, backend)

    def _failed(
        self, line: Line, custom_id: bytes, place: Permit, end: request_codec.Failure, now: float
    ) -> CallResult:
        backend = place.backend
        asked = request_codec.wait_seconds(end.answer.retry_after, self._clock()) if end.answer else None
        is_late = end.code == Broken.TIMEOUT
        # Where most calls are answered, it is not this line that was asked to wait but one call among many; the
        # next line in its place would be the same load.
        is_chance = end.is_full and not backend.limit.is_pressed
        others_answered = backend.has_answered(line.head.url, line.mark)
        is_suspected = line.past is not None and (others_answered or line.past.tries > 0)
        failed = Failed(
            end.kind,
            (line.head.batch_id, line.index),
            is_suspected=is_suspected,
            is_full=end.is_full,
            is_late=is_late,
            is_taken=end.answer is not None and not end.is_full and end.status not in _GATEWAYS,
            asked=asked,
        )
        self._fleet.failed(place, failed, now)
        if end.kind is Kind.REFUSAL and backend.breaker.failures and now >= backend.warned_at + WARN_SECONDS:
            backend.warned_at = now
            _log.warning(
                "backend %s does not take our calls: %s Check its key and model.", backend.base, end.message
            )
        return CallResult(
            custom_id,
            end,
            backend,
            counts=end.kind is not Kind.OUTAGE
            and others_answered
            and not (end.is_full and not is_late and backend.refusing > REFUSING_MAX),
            brisk=is_chance,
            wait_seconds=None if is_chance else asked,
        )

    def proof(self, told: Callable[[], None], wait_seconds: float) -> Proof:
        """Who asks the model's backends whether they answer; see `Proof`."""
        return Proof(self._menu.model, self._fleet, self._upstream, told, wait_seconds)

    async def _fetched(self, ref: LineRef) -> bytes:
        chunks = [chunk async for chunk in self._store.read(ref.key, ref.offset, ref.offset + ref.length)]
        return b"".join(chunks)


def _sent(body: msgspec.Raw) -> bytes | memoryview:
    """A large body is sent from where it lies, not from a copy."""
    view = memoryview(body)
    return bytes(view) if len(view) <= SMALL_BYTES else view
