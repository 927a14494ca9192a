"""What is measured, and how it is told: cases, their inputs, and tables of results. No I/O."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import orjson

MODEL = "mock-model"
IN_FLIGHT_MAX = 256
CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
COLUMNS = (
    "seconds",
    "lines_per_second",
    "ideal_share",
    "backend_idle_share",
    "cpu_ms_per_line",
    "last_reply_to_completed_seconds",
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement: so many batches of so many lines each.

    Attributes:
        name: What it is called.
        lines: Lines of a batch.
        line_bytes: Of each line, the newline included.
        batches: How many of them.
        clients: How many of them are made at one time.
        batches_per_second: How many of them begin in a second at most; 0 for as many as the clients can.
        endpoint: What is asked of the backend.
        backend: What the backend is told before (`POST /set`).
        latency_seconds: What the backend takes for a call, for the ideal.
        capacity: Calls that are made at one time, for the ideal.
        changes: What becomes of the backend's capacity, and how many seconds after the first call.
    """

    name: str
    lines: int
    line_bytes: int = 300
    batches: int = 1
    clients: int = 1
    batches_per_second: float = 0.0
    endpoint: str = CHAT
    backend: Mapping[str, str] = field(default_factory=dict)
    latency_seconds: float = 0.0
    capacity: int = IN_FLIGHT_MAX
    changes: tuple[tuple[float, int], ...] = ()

    @property
    def ideal_seconds(self) -> float:
        """How long the calls alone take, with the backend always full; 0 where it answers at once."""
        left, since, capacity = self.latency_seconds * self.lines * self.batches, 0.0, self.capacity
        for at, then in self.changes:
            if left <= (done := (at - since) * capacity):
                break
            left, since, capacity = left - done, at, then
        return since + left / capacity


SLOW = {"latency": "100ms"}
CASES = (
    Case(name="one", lines=1),
    Case(name="thousand", lines=1_000),
    Case(name="ten-thousand", lines=10_000),
    Case(name="fifty-thousand", lines=50_000),
    Case(name="fifty-thousand-slow", lines=50_000, backend=SLOW, latency_seconds=0.1),
    Case(name="large-file", lines=25_000, line_bytes=8_380),
    Case(name="refused-none", lines=10_000, backend=SLOW, latency_seconds=0.1),
    Case(name="refused-5-percent", lines=10_000, backend={**SLOW, "limit": "0.05"}, latency_seconds=0.1),
    Case(name="capacity-64", lines=10_000, backend={**SLOW, "capacity": "64"}, latency_seconds=0.1, capacity=64),
    Case(name="large-answers", lines=10_000, endpoint=EMBEDDINGS),
    Case(
        name="capacity-changes",
        lines=12_000,
        backend={**SLOW, "capacity": "64"},
        latency_seconds=0.1,
        capacity=64,
        changes=((6.0, 32), (12.0, 64), (18.0, 128)),
    ),
    Case(name="small-batches", lines=10, batches=1_000, clients=16, backend=SLOW, latency_seconds=0.1),
    Case(
        name="small-batches-paced",
        lines=10,
        batches=300,
        clients=16,
        batches_per_second=15,
        backend=SLOW,
        latency_seconds=0.1,
    ),
    Case(name="backlog-of-a-million", lines=50_000, batches=20, clients=20),
)
CALM = {"latency": "0s", "limit": "0", "capacity": "0", "fail": "0", "hang": "0", "drop": "0", "cut": "0"}


def line(number: int, size: int, endpoint: str = CHAT) -> bytes:
    """The line of this number, `size` bytes long with its newline."""
    bare = orjson.dumps(_shape(f"Q{number} ", number, endpoint))
    pad = max(0, size - 1 - len(bare))
    return orjson.dumps(_shape(f"Q{number} " + "x" * pad, number, endpoint)) + b"\n"


def _shape(text: str, number: int, endpoint: str) -> dict[str, object]:
    if endpoint == EMBEDDINGS:
        # Two vectors: a mock backend of `-dims 5120` answers with some 60 KB.
        body: dict[str, object] = {"model": MODEL, "input": [text, "y"]}
    else:
        body = {"model": MODEL, "max_tokens": 16, "messages": [{"role": "user", "content": text}]}
    return {"custom_id": f"r-{number:08d}", "method": "POST", "url": endpoint, "body": body}


def lines(case: Case) -> Iterator[bytes]:
    """The input of one of the case's batches."""
    return (line(number, case.line_bytes, case.endpoint) for number in range(case.lines))


def quantile(values: list[float], part: float) -> float:
    """The value below which `part` of them lie; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def table(results: Mapping[str, Mapping[str, float]], before: Mapping[str, Mapping[str, float]]) -> str:
    """The results as text, beside those of another run where there are some."""
    rows = [f"{'case':<22}" + "".join(f"{name:>34}" for name in COLUMNS)]
    for name, result in results.items():
        cells = []
        for column in COLUMNS:
            text = f"{result.get(column, 0):.3f}"
            if old := before.get(name, {}).get(column):
                text += f" ({result.get(column, 0) / old:.2f} x)"
            cells.append(f"{text:>34}")
        rows.append(f"{name:<22}" + "".join(cells))
    return "\n".join(rows)
