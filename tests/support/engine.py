"""An inference server with continuous batching, modelled on vLLM's scheduler; it has no clock of its own.

The server works in steps. A step takes a base time, and a part for each sequence and each prompt token in it. Each
step schedules as vLLM's V1 scheduler does (`vllm/v1/core/sched/scheduler.py`): first what runs, one token each;
then prompts, in chunks, as far as `max_num_batched_tokens` goes; then waiting requests, first come first served or
by `priority`, while `max_num_seqs` and the blocks of the KV cache allow. If a running sequence needs a block and
none is left, the last one that was admitted (by priority: the least urgent) is preempted: it loses its cache, goes
to the front of the queue, and computes its tokens anew.

A step costs the model the same whatever number of sequences run: sequences that decode are counted, not visited.
"""

import math
from bisect import insort
from collections import defaultdict, deque
from dataclasses import dataclass, field

from support.engine_metrics import EngineMetrics


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Settings of the server; times are seconds, and the three default costs fit a mid-sized model on one GPU."""

    step_seconds: float = 0.008
    sequence_seconds: float = 0.00015
    prompt_token_seconds: float = 0.00004
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 2048
    num_blocks: int = 8192
    block_size: int = 16
    by_priority: bool = False
    """Whether it was started with `--scheduling-policy priority`."""


@dataclass(slots=True, eq=False)
class Request:
    """One request; `prompt` and `output` are tokens."""

    prompt: int
    output: int
    arrived_at: float
    priority: int = 0
    number: int = 0
    first_token_at: float | None = None
    ended_at: float | None = None
    scheduled_at: float | None = None
    waited_steps: int = 0
    """Steps that began without it while it was there."""
    generated: int = 0
    computed: int = 0
    """Tokens in the cache, while its prompt is worked on."""
    blocks: int = 0
    joined: int = 0
    """The step before its first token but one."""
    ends: int = 0
    """The step of its last token."""
    phase: int = 0
    """The step, modulo the size of a block, that writes the first token of a block."""

    @property
    def turn(self) -> tuple[int, float, int]:
        """The order of a queue by priority."""
        return self.priority, self.arrived_at, self.number


@dataclass(slots=True)
class _Decoding:
    """The sequences that get one token a step, in the order of their admission."""

    all: dict[Request, None] = field(default_factory=dict)
    ends: defaultdict[int, dict[Request, None]] = field(default_factory=lambda: defaultdict(dict))
    phases: defaultdict[int, dict[Request, None]] = field(default_factory=lambda: defaultdict(dict))


class Engine:
    """The server; the caller says how time passes: `begin` a step, and `end` it `seconds` later."""

    def __init__(self, settings: EngineSettings, *, model: str = "m", started_at: float = 0.0) -> None:
        """Start without requests."""
        self.settings = settings
        self.metrics = EngineMetrics(model, started_at)
        self.free_blocks = settings.num_blocks
        """Of the KV cache."""
        self._steps = 0
        self._numbers = 0
        self._waiting: deque[Request] | list[Request] = [] if settings.by_priority else deque()
        self._left_waiting = 0
        """Those that the step began without; a request that comes meanwhile does not count as waiting yet."""
        self._prefilling: list[Request] = []
        """Admitted, with a part of the prompt to go."""
        self._chunked: list[Request] = []
        """Those with tokens of the prompt in this step."""
        self._decoding = _Decoding()

    @property
    def running(self) -> int:
        """Requests that it works on."""
        return len(self._decoding.all) + len(self._prefilling)

    @property
    def waiting(self) -> int:
        """Requests that have come and are not worked on."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.running and not self._waiting

    def submit(self, prompt: int, output: int, now: float, priority: int = 0) -> Request:
        """A request comes, at the earliest for the next step."""
        self._numbers += 1
        request = Request(prompt, output, now, priority, self._numbers)
        if self._blocks_for(prompt + output) > self.settings.num_blocks:
            raise ValueError("the cache does not hold it")
        self._enqueue(request)
        return request

    def cancel(self, request: Request) -> None:
        """The client is gone."""
        if request in self._waiting:
            self._waiting.remove(request)
        elif request in self._prefilling:
            self._prefilling.remove(request)
            self._release(request)
        elif request in self._decoding.all:
            self._stop_decoding(request)
            self._release(request)
        self._chunked = [other for other in self._chunked if other is not request]

    def begin(self, now: float) -> float:
        """Begin a step; gives its seconds."""
        one, preemptions = self.settings, self.metrics.preemptions
        self._extend()
        self._chunked = []
        left = one.max_num_batched_tokens - len(self._decoding.all)
        for request in list(self._prefilling):
            left -= self._chunk(request, left, preempts=True)
        if self.metrics.preemptions == preemptions:
            left = self._admit(left, now)
        for request in self._waiting:
            request.waited_steps += 1
        self._left_waiting = len(self._waiting)
        decoding = len(self._decoding.all)
        prompts = one.max_num_batched_tokens - decoding - left
        sequences = decoding + len(self._chunked)
        return one.step_seconds + one.sequence_seconds * sequences + one.prompt_token_seconds * prompts

    def end(self, now: float, seconds: float) -> list[Request]:
        """The step that began `seconds` ago ends; gives the requests that have all their tokens."""
        self._steps += 1
        self.metrics.between_tokens.observe(seconds, len(self._decoding.all))
        self.metrics.generated += len(self._decoding.all)
        ended = list(self._decoding.ends.get(self._steps, ()))
        for request in ended:
            self._stop_decoding(request)
        for request in self._chunked:
            if request.computed >= request.prompt + request.generated:
                self._prefilling.remove(request)
                self._token(request, now)
                if request.generated >= request.output:
                    ended.append(request)
                else:
                    self._decode(request)
        self._chunked = []
        for request in ended:
            request.ended_at = now
            self._release(request)
        self.metrics.set(self.running, self._left_waiting, 1 - self.free_blocks / self.settings.num_blocks)
        return ended

    def _token(self, request: Request, now: float) -> None:
        self.metrics.generated += 1
        request.generated += 1
        if request.first_token_at is None:
            request.first_token_at = now
            self.metrics.to_first_token.observe(now - request.arrived_at)

    def _enqueue(self, request: Request) -> None:
        if isinstance(self._waiting, deque):
            self._waiting.append(request)
        else:
            insort(self._waiting, request, key=lambda one: one.turn)

    def _blocks_for(self, tokens: int) -> int:
        return math.ceil(tokens / self.settings.block_size)

    def _chunk(self, request: Request, left: int, *, preempts: bool = False) -> int:
        """Spend the rest of the step on a prompt; returns the tokens."""
        tokens = min(request.prompt + request.generated - request.computed, left)
        need = self._blocks_for(request.computed + tokens) - request.blocks
        while preempts and need > self.free_blocks and request in self._prefilling:
            self._preempt()
        if tokens <= 0 or need > self.free_blocks or (preempts and request not in self._prefilling):
            return 0
        self.free_blocks -= need
        request.blocks += need
        request.computed += tokens
        self._chunked.append(request)
        return tokens

    def _admit(self, left: int, now: float) -> int:
        while self._waiting and left > 0 and self.running < self.settings.max_num_seqs:
            request = self._waiting[0]
            if not (tokens := self._chunk(request, left)):
                break
            left -= tokens
            self._waiting.remove(request)
            self._prefilling.append(request)
            if request.scheduled_at is None:
                request.scheduled_at = now
        return left

    def _decode(self, request: Request) -> None:
        size = self.settings.block_size
        request.joined = self._steps
        request.ends = self._steps + request.output - request.generated
        request.phase = (self._steps + request.blocks * size - request.computed) % size
        self._decoding.all[request] = None
        self._decoding.ends[request.ends][request] = None
        self._decoding.phases[request.phase][request] = None

    def _stop_decoding(self, request: Request) -> None:
        request.generated += self._steps - request.joined
        del self._decoding.all[request]
        del self._decoding.phases[request.phase][request]
        del self._decoding.ends[request.ends][request]
        if not self._decoding.ends[request.ends]:
            del self._decoding.ends[request.ends]

    def _release(self, request: Request) -> None:
        self.free_blocks += request.blocks
        request.blocks = 0

    def _extend(self) -> None:
        """Give each sequence that needs one a block, if need be another one's."""
        for request in list(self._decoding.phases[self._steps % self.settings.block_size]):
            while request in self._decoding.all and not self.free_blocks:
                self._preempt()
            if request in self._decoding.all:
                self.free_blocks -= 1
                request.blocks += 1

    def _preempt(self) -> None:
        running = [*self._decoding.all, *self._prefilling]
        victim = max(running, key=lambda one: one.turn) if self.settings.by_priority else running[-1]
        if victim in self._decoding.all:
            self._stop_decoding(victim)
        else:
            self._prefilling.remove(victim)
        self._release(victim)
        self._chunked = [other for other in self._chunked if other is not victim]
        victim.computed = 0
        self.metrics.preemptions += 1
        if isinstance(self._waiting, deque):
            self._waiting.appendleft(victim)
        else:
            insort(self._waiting, victim, key=lambda one: one.turn)
