"""Decides which waiting lines go in one call.

A line takes along other lines of its batch that wait close behind it and have the same parameters, headers and
deadline. It waits for none of them. The bounds are the inputs of a call, the bytes of its body, and the tokens
that a limit of tokens a minute has left.

A call that is refused, or whose reply does not fit its lines, proves nothing against any of them. Its lines are
called again at once in calls of half as many inputs, and in the end alone, where `calls/retry.py` decides.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from tidemill.configuration.servers import Model
from tidemill.processors.backends.backend import Permit
from tidemill.processors.backends.pool import FAILED_PART_MAX
from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.calls.caller import CallResult
from tidemill.processors.calls.request_codec import Success
from tidemill.processors.joined import inputs
from tidemill.processors.joined.input_bound import InputBound
from tidemill.processors.lines import Line
from tidemill.schemas.endpoints import ENDPOINTS, UNKNOWN, Endpoint

SPAN_TIMES: Final = 4
"""A line looks for others among `SPAN_TIMES` as many as may go with it: lines may alternate in parameters."""
BYTES_MAX: Final = 256 << 10
"""Bytes of the inputs of a call: some 65,000 tokens. OpenAI takes 300,000."""

_log = logging.getLogger(__name__)


class JoinedCall:
    """One call for several lines of a batch."""

    def __init__(self, line: Line, request: inputs.Request, endpoint: Endpoint, inputs_max: int) -> None:
        """Start with one line."""
        self.lines = [line]
        self.requests = [request]
        self.endpoint = endpoint
        self.inputs = request.inputs
        self.bytes = len(request.content)
        self._inputs_max = inputs_max

    @property
    def size(self) -> int:
        """Bytes of the lines."""
        return sum(line.size for line in self.lines)

    @property
    def body(self) -> bytes:
        """The body to send, before the rules of the model."""
        return inputs.body(self.requests, self.endpoint)

    def add(self, line: Line, buckets: Sequence[TokenBucket]) -> bool:
        """Add a line, if it may go with the others, and the limits of tokens a minute have room for all."""
        if not self._may_have(line) or (request := inputs.request(line.text, self.endpoint)) is None:
            return False
        total = self.inputs + request.inputs
        size = self.bytes + len(request.content) + 1
        bound = min(self._inputs_max, line.inputs_max or self._inputs_max)
        if total > bound or size > BYTES_MAX or not request.is_like(self.requests[0]):
            return False
        if not all(bucket.holds(size, len(self.lines) + 1) for bucket in buckets):
            return False
        self.lines.append(line)
        self.requests.append(request)
        self.inputs, self.bytes, self._inputs_max = total, size, bound
        return True

    def _may_have(self, line: Line) -> bool:
        mine, other = self.lines[0].head, line.head
        is_like = mine is other or (
            (mine.url, mine.deadline, mine.headers) == (other.url, other.deadline, other.headers)
        )
        return is_like and not line.is_lost and other.ref is None and self.inputs < self._inputs_max


class Joiner:
    """Joins the lines of one model."""

    def __init__(self, model: str, inputs_max: int) -> None:
        """Join at most this many inputs."""
        self._model = model
        self.inputs_max = inputs_max
        self._bound = InputBound(inputs_max)

    def join(
        self, line: Line, permit: Permit, company: Callable[[Callable[[Line], bool], int], None]
    ) -> JoinedCall | None:
        """A call for a line and others that wait; None if the line goes alone.

        `company` offers that many waiting lines of the batch in their order, and removes those that are accepted.
        """
        endpoint = ENDPOINTS.get(line.head.url, UNKNOWN)
        inputs_max = min(self._bound.inputs, line.inputs_max or self._bound.inputs)
        if endpoint.answers is None or line.head.ref is not None or not _may_lead(line, permit):
            return None
        if inputs_max == 1:
            if not line.inputs_max:
                self._bound.answered(1)
            return None
        request = inputs.request(line.text, endpoint)
        if request is None or request.inputs >= inputs_max:
            return None
        call = JoinedCall(line, request, endpoint, inputs_max)
        company(lambda other: call.add(other, permit.backend.buckets), SPAN_TIMES * inputs_max)
        return call if len(call.lines) > 1 else None

    def ended(self, call: JoinedCall, results: Sequence[CallResult] | None) -> None:
        """Note the end of a call; without results, smaller ones must ask for its lines."""
        if results is not None:
            if any(isinstance(result.end, Success) for result in results):
                self._bound.answered(call.inputs)
            return
        for line in call.lines:
            line.inputs_max = call.inputs // 2
        if self._bound.refused(call.inputs):
            _log.warning(
                "calls with %d inputs to %s are refused, or their replies cannot be divided;"
                " the next have at most %d",
                call.inputs, self._model, self._bound.inputs,
            )  # fmt: skip


def joiner(name: str, model: Model) -> Joiner | None:
    """The joiner of a model; None if its settings do not ask for one."""
    return Joiner(name, model.inputs_per_call) if model.inputs_per_call > 1 else None


def _may_lead(line: Line, permit: Permit) -> bool:
    """Whether neither the line nor its server is suspect; else it is called alone, to show which is at fault."""
    if any(permit.probes) or permit.backend.failed_part > FAILED_PART_MAX:
        return False
    return line.history is None or line.history.is_clear
