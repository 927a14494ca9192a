"""Cases of the bench, their inputs, and the table of results. No I/O."""

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
    """One measurement: a number of equal batches.

    Attributes:
        name: Its name on the command line.
        lines: Lines of each batch.
        line_bytes: Bytes of each line, the newline included.
        batches: Number of batches.
        clients: Number of batches in progress at a time.
        batches_per_second: Upper bound on batches started per second; 0 is unbounded.
        endpoint: Endpoint of all lines.
        backend: Parameters of the mock backend (`POST /set`).
        latency_seconds: Latency of one call, for the ideal time.
        capacity: Concurrent calls that the backend takes, for the ideal time.
        changes: Changes of that capacity: seconds after the first call, and the new value.
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
        """Time of the calls alone with a backend that is always full; 0 for one that answers at once."""
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
    """Line `number`, `size` bytes long with its newline."""
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
    """The input of one batch of the case."""
    return (line(number, case.line_bytes, case.endpoint) for number in range(case.lines))


def quantile(values: list[float], part: float) -> float:
    """The value below which the share `part` of the values lies; 0 for no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def table(results: Mapping[str, Mapping[str, float]], before: Mapping[str, Mapping[str, float]]) -> str:
    """The results as text, with the ratios to those of an earlier run."""
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
