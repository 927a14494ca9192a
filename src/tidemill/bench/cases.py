"""Cases of the bench and their inputs. No I/O."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import orjson

MODELS = ("mock-model", "mock-model-2")
"""Models of the mock backend."""
JOINED = "mock-model-joined"
"""The first of them under another name, with up to `INPUTS_PER_CALL` lines in a call."""
INPUTS_PER_CALL = 32
IN_FLIGHT_MAX = 256
CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement: a number of equal batches.

    Attributes:
        name: Its name on the command line.
        lines: Lines of each batch.
        line_bytes: Bytes of each line, the newline included.
        batches: Number of batches.
        models: The models; batches use them in turn.
        clients: Number of batches in progress at a time.
        endpoint: Endpoint of all lines.
        backend: Parameters of the mock backend (`POST /set`).
        in_flight: Concurrent calls that the backend takes, and that the bare client makes.
        changes: Changes of that number: seconds after the first call, and the new value.
    """

    name: str
    lines: int
    line_bytes: int = 300
    batches: int = 1
    models: tuple[str, ...] = MODELS[:1]
    clients: int = 1
    endpoint: str = CHAT
    backend: Mapping[str, str] = field(default_factory=dict)
    in_flight: int = IN_FLIGHT_MAX
    changes: tuple[tuple[float, int], ...] = ()

    @property
    def total(self) -> int:
        """Lines of all batches."""
        return self.lines * self.batches

    @property
    def in_flight_max(self) -> int:
        """The most calls at a time: no more than there are lines in progress."""
        return min(self.in_flight, self.lines * self.clients)


SLOW = {"latency": "100ms"}
EACH_CALL = {"overhead": "2ms"}
"""A server that takes 2 ms for each call, one at a time, whatever its content."""
CASES = (
    Case(name="one", lines=1),
    Case(name="thousand", lines=1_000),
    Case(name="fifty-thousand", lines=50_000),
    Case(name="fifty-thousand-slow", lines=50_000, backend=SLOW),
    Case(name="two-models", lines=5_000, batches=2, models=MODELS, clients=2, backend=SLOW),
    Case(name="large-file", lines=25_000, line_bytes=8_380),
    Case(name="large-answers", lines=10_000, endpoint=EMBEDDINGS),
    Case(name="embeddings", lines=5_000, endpoint=EMBEDDINGS, backend=EACH_CALL),
    Case(name="embeddings-joined", lines=5_000, endpoint=EMBEDDINGS, backend=EACH_CALL, models=(JOINED,)),
    Case(name="refused-5-percent", lines=10_000, backend={**SLOW, "limit": "0.05"}),
    Case(name="capacity-64", lines=10_000, backend={**SLOW, "capacity": "64"}, in_flight=64),
    Case(
        name="capacity-changes",
        lines=12_000,
        backend={**SLOW, "capacity": "64"},
        in_flight=64,
        changes=((6.0, 32), (12.0, 64), (18.0, 128)),
    ),
    Case(name="small-batches", lines=10, batches=1_000, clients=16, backend=SLOW),
    Case(name="backlog-of-a-million", lines=50_000, batches=20, clients=20),
)
CALM = {
    "latency": "0s",
    "limit": "0",
    "capacity": "0",
    "fail": "0",
    "hang": "0",
    "drop": "0",
    "cut": "0",
    "overhead": "0s",
}


def line(number: int, size: int, endpoint: str = CHAT, model: str = MODELS[0]) -> bytes:
    """Line `number`, `size` bytes long with its newline; its body is the last field."""
    bare = orjson.dumps(_shape(f"Q{number} ", number, endpoint, model))
    pad = max(0, size - 1 - len(bare))
    return orjson.dumps(_shape(f"Q{number} " + "x" * pad, number, endpoint, model)) + b"\n"


def _shape(text: str, number: int, endpoint: str, model: str) -> dict[str, object]:
    if endpoint == EMBEDDINGS:
        body: dict[str, object] = {"model": model, "input": text}
    else:
        body = {"model": model, "max_tokens": 16, "messages": [{"role": "user", "content": text}]}
    return {"custom_id": f"r-{number:08d}", "method": "POST", "url": endpoint, "body": body}


def lines(case: Case, model: str = MODELS[0]) -> Iterator[bytes]:
    """The input of one batch of the case."""
    return (line(number, case.line_bytes, case.endpoint, model) for number in range(case.lines))
