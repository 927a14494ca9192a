"""What is measured, and how it is told: cases, their inputs, and tables of results. No I/O."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import orjson

MODEL = "mock-model"
IN_FLIGHT_MAX = 256
ENDPOINT = "/v1/chat/completions"
COLUMNS = ("seconds", "lines_per_second", "ideal_share", "cpu_ms_per_line", "last_reply_to_completed_seconds")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement: so many batches of so many lines each.

    Attributes:
        name: What it is called.
        lines: Lines of a batch.
        line_bytes: Of each line, the newline included.
        batches: How many of them.
        clients: How many of them are made at one time.
        backend: What the backend is told before (`POST /set`).
        latency_seconds: What the backend takes for a call, for the ideal.
        capacity: Calls that are made at one time, for the ideal.
    """

    name: str
    lines: int
    line_bytes: int = 300
    batches: int = 1
    clients: int = 1
    backend: Mapping[str, str] = field(default_factory=dict)
    latency_seconds: float = 0.0
    capacity: int = IN_FLIGHT_MAX

    @property
    def ideal_seconds(self) -> float:
        """How long the calls alone take, with the backend always full; 0 where it answers at once."""
        return self.latency_seconds * self.lines * self.batches / self.capacity


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
    Case(name="small-batches", lines=10, batches=1_000, clients=16, backend=SLOW, latency_seconds=0.1),
)
CALM = {"latency": "0s", "limit": "0", "capacity": "0", "fail": "0", "hang": "0", "drop": "0", "cut": "0"}


def line(number: int, size: int) -> bytes:
    """The line of this number, `size` bytes long with its newline."""
    body = {"model": MODEL, "max_tokens": 16, "messages": [{"role": "user", "content": f"Q{number} "}]}
    shape = {"custom_id": f"r-{number:08d}", "method": "POST", "url": ENDPOINT, "body": body}
    pad = max(0, size - 1 - len(orjson.dumps(shape)))
    body["messages"][0]["content"] += "x" * pad  # type: ignore[index]
    return orjson.dumps(shape) + b"\n"


def lines(case: Case) -> Iterator[bytes]:
    """The input of one of the case's batches."""
    return (line(number, case.line_bytes) for number in range(case.lines))


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
