"""Makes one call for several lines, and judges the reply of each line by itself."""

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from tidemill.processors.backends.backend import Backend, Permit
from tidemill.processors.calls import request_codec, retry
from tidemill.processors.calls.caller import Caller, CallResult, count_call, used
from tidemill.processors.calls.endpoint_probe import STATUSES
from tidemill.processors.calls.request_codec import Success
from tidemill.processors.failures import Answer, CallFailure, Evidence, FailureKind, Fault, History
from tidemill.processors.joined import reply
from tidemill.processors.joined.joiner import JoinedCall

_log = logging.getLogger(__name__)


async def make(caller: Caller, call: JoinedCall, permit: Permit) -> list[CallResult] | None:
    """Call once with the permit, which covers this call only; never raises.

    Returns:
        The result of each line in their order; None if smaller calls must ask for the lines, because the server
        refuses this one and answers others, or because the reply does not fit the lines.
    """
    server = permit.backend.server
    server.company += call.inputs - 1
    try:
        ends = await _made(caller, call, permit)
    except BaseException as error:
        # A call that is aborted may have been sent.
        caller.pool.release(permit, is_sent=not isinstance(error, Exception))
        if not isinstance(error, Exception):
            raise
        _log.exception("a call for %d lines of %s failed", len(call.lines), call.lines[0].head.batch_id)
        return None
    finally:
        server.company -= call.inputs - 1
    if isinstance(ends, CallFailure):
        return _failed(caller, call, permit, ends)
    good = [end for end in ends if isinstance(end, Success)]
    leader = call.lines[0]
    caller.pool.answered(
        permit,
        asyncio.get_running_loop().time(),
        # Without the counts of each line the estimate stays, as that of a single line does.
        sum(map(used, good)) if all(isinstance(end, Success) and end.tokens for end in ends) else 0,
        endpoint=leader.head.url if good else None,
        begun=leader.began_at,
    )
    if not good:
        return None
    try:
        return [await _result(caller, call, permit, number, end) for number, end in enumerate(ends)]
    except Exception:  # noqa: BLE001  the seat is free, and a bug must not lose a line
        _log.exception("answers to %d lines of %s cannot be checked", len(call.lines), leader.head.batch_id)
        return None


def count(call: JoinedCall, backend: Backend, results: Sequence[CallResult] | None) -> None:
    """Count an ended call in the metrics: a good one if one of its lines has a result."""
    ends = [result.end for result in results or ()]
    good = [end for end in ends if isinstance(end, Success)]
    count_call(call.lines[0], backend, next(iter(good or ends), None))
    if len(good) > 1:
        backend.metrics.joined(len(good) - 1, sum(map(used, good[1:])))


async def _made(caller: Caller, call: JoinedCall, permit: Permit) -> list[Success | CallFailure] | CallFailure:
    """The outcome of each line, none if the reply does not fit the lines; or the failure of the whole call."""
    leader = call.lines[0]
    if leader.head.validated and leader.check is None:
        leader.check = await caller.checks.learn(leader.head.batch_id)
    outcome = await caller.post(leader, msgspec.Raw(call.body), permit.backend)
    share = outcome.share if isinstance(outcome, Answer) else None
    try:
        if share is None:
            ends = _judged(outcome, call)
        else:
            ends = await asyncio.to_thread(_judged, outcome, call)
        if isinstance(ends, CallFailure) and ends.answer is not None and ends.answer.status in STATUSES:
            ends = await caller.checked_endpoint(ends, leader, permit)
    except BaseException:
        if share is not None:
            share.close()
        raise
    if share is not None and not isinstance(ends, CallFailure):
        # The replies of the lines are copies.
        share.close()
    return ends


def _judged(outcome: Answer | FailureKind, call: JoinedCall) -> list[Success | CallFailure] | CallFailure:
    url = call.lines[0].head.url
    whole = request_codec.judge(outcome, url)
    # One choice with an error fails its own line alone.
    if isinstance(whole, CallFailure) and whole.kind not in {FailureKind.ERROR_IN_REPLY, FailureKind.BROKEN_OFF}:
        # llama.cpp sends a list of replies for several prompts.
        is_list = whole.answer is not None and request_codec.is_filled_list(whole.answer.body)
        return [] if is_list and whole.kind is FailureKind.UNSUPPORTED_REPLY else whole
    try:
        bodies = reply.divided(whole.body, call.requests, call.endpoint)
    except reply.MixedUpError:
        return whole if isinstance(whole, CallFailure) else []
    assert isinstance(outcome, Answer), "it has a body"
    leader = call.lines[0]
    name = request_codec.request_id(outcome.request_id, leader.head.batch_id, leader.index, leader.attempts)
    return [
        request_codec.judge(Answer(outcome.status, body, name, first_byte=outcome.first_byte), url)
        for body in bodies
    ]


def _failed(caller: Caller, call: JoinedCall, permit: Permit, failure: CallFailure) -> list[CallResult] | None:
    leader = call.lines[0]
    before = leader.history
    if leader.inputs_max and before is None:
        # A larger call failed before: another failure proves little about the server.
        before = History(leader.since)
    _, ended, evidence = caller.failed(leader, call.requests[0].custom_id, permit, failure, before)
    assert isinstance(ended, CallFailure), "it says how the call failed"
    failure = ended
    is_refused = retry.blamed(failure, evidence) is Fault.LINE
    if is_refused and failure.kind is not FailureKind.NOT_SERVED:
        if failure.share is not None:
            failure.share.close()
        return None
    failure = request_codec.located(failure, is_shared=True)
    return [CallResult(request.custom_id, failure, evidence) for request in call.requests]


async def _result(
    caller: Caller, call: JoinedCall, permit: Permit, number: int, end: Success | CallFailure
) -> CallResult:
    custom_id = call.requests[number].custom_id
    line = call.lines[number]
    if isinstance(end, Success):
        check = call.lines[0].check
        fault = None if check is None else await caller.checks.fault(check, line.head.url, end.body)
        return caller.result_of(line, permit, custom_id, end, fault)
    backend = permit.backend
    failure = caller.locate(end, call.lines[number], permit)
    others_answered = backend.has_answered(failure.endpoint, failure.since)
    return CallResult(custom_id, failure, Evidence(others_answered, other_is_well=caller.pool.has_other(backend)))
