"""How batches delay the people who share a server with them: prints the table of docs/explanation/performance.md.

`make interactive` simulates a server with continuous batching (`support/engine.py`) in virtual time. A run depends
on its seed alone, so the numbers are the same on every machine.
"""

import functools
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Final

from support.beside import Beside, Seen, Traffic, quantile
from support.engine import EngineSettings
from support.servers import backend

from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit
from tidemill.processors.limits.headroom import Headroom

SERVER: Final = EngineSettings()
"""128 sequences; steps of 8 ms, 0.15 ms for each sequence, and 0.04 ms for each prompt token."""
TRAFFIC: Final = Traffic()
"""Four requests of people a second; lines like these."""
CALLS_MAX: Final = 160
SECONDS: Final = 400.0
SETTLED_SECONDS: Final = 60.0
"""The first minute is not measured: the limits find the server's capacity in it."""
SEEDS: Final = range(4)


@dataclass(frozen=True)
class Figures:
    """Latency for people in seconds, and throughput of lines in tokens a second."""

    p50: float
    p99: float
    rate: float
    waited: float
    """The share of people's requests that waited in the server's queue for longer than a step."""
    calls: float
    """Mean number of calls in flight."""


def pool(headroom: Headroom | None = None, *, calls_max: int = CALLS_MAX) -> BackendPool:
    """A process with lines."""
    return BackendPool([backend("http://a", ConcurrencyLimit(calls_max), calls_max=calls_max, headroom=headroom)])


def headroom(ttft_seconds: float | None = None, *, seed: int = 0) -> Headroom:
    """Headroom that depends on the seed alone."""
    return Headroom(ttft_seconds, chance=random.Random(seed).random)


def world(pools: Sequence[BackendPool], seed: int = 0, **changes: object) -> Beside:
    """The server with this traffic; `changes` override settings of either."""
    of_traffic = {name: value for name, value in changes.items() if hasattr(TRAFFIC, name)}
    of_server = {name: value for name, value in changes.items() if hasattr(SERVER, name)}
    assert len(of_traffic) + len(of_server) == len(changes), changes
    return Beside(replace(SERVER, **of_server), replace(TRAFFIC, **of_traffic), pools, seed=seed)


def figures(runs: Iterable[Seen], begin: float = SETTLED_SECONDS, end: float = SECONDS) -> Figures:
    """The figures over all runs."""
    runs = list(runs)
    first = [seconds for seen in runs for seconds in seen.first_tokens(begin, end)] or [0.0]
    came = [one for seen in runs for one in seen.people if begin <= one.arrived_at < end]
    return Figures(
        quantile(first, 0.5),
        quantile(first, 0.99),
        fmean(seen.rate(begin, end) for seen in runs),
        sum(one.waited_steps > 1 for one in came) / max(1, len(came)),
        fmean([calls for seen in runs for at, calls in seen.levels if begin <= at < end] or [0]),
    )


@functools.cache
def alone(**changes: object) -> Figures:
    """People without a batch."""
    return figures(world((), seed, **changes).run(SECONDS) for seed in SEEDS)


@functools.cache
def off(*, seeds: int = len(SEEDS), **changes: object) -> Figures:
    """A batch without headroom."""
    return figures(world([pool()], seed, **changes).run(SECONDS) for seed in range(seeds))


def fixed(calls: int) -> Figures:
    """A batch with a fixed limit, and no metrics."""
    runs = []
    for seed in SEEDS:
        one = world([pool(calls_max=calls)], seed)
        one.page = lambda _: None
        runs.append(one.run(SECONDS))
    return figures(runs)


@functools.cache
def on(ttft_seconds: float | None = None, *, seeds: int = len(SEEDS), **changes: object) -> Figures:
    """A batch with headroom."""
    return figures(
        world([pool(headroom(ttft_seconds, seed=seed))], seed, **changes).run(SECONDS) for seed in range(seeds)
    )


@functools.cache
def best_fixed(ttft_seconds: float) -> Figures:
    """The highest fixed limit that keeps the target."""
    low, high = 1, CALLS_MAX
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fixed(middle).p99 <= ttft_seconds else (low, middle)
    return fixed(low)


def main() -> None:
    """Print the table."""
    rows = {"people alone": alone(), "no headroom": off(), "`headroom = true`": on()}
    for milliseconds in (50, 60, 80):
        rows[f"`headroom = {{ ttft_ms = {milliseconds} }}`"] = on(milliseconds / 1000)
        rows[f"the best fixed limit for {milliseconds} ms"] = best_fixed(milliseconds / 1000)
    rows["no people, no headroom"] = off(people=lambda _: 0.0)
    rows["no people, `headroom = true`"] = on(people=lambda _: 0.0)
    lines = ["| | p50 | p99 | waited longer than a step | tokens of lines a second | calls in flight |"]
    lines.append("|---" * 6 + "|")
    for name, one in rows.items():
        cells = f"{1000 * one.p50:.0f} ms | {1000 * one.p99:.0f} ms | {100 * one.waited:.1f} %"
        lines.append(f"| {name} | {cells} | {one.rate:.0f} | {one.calls:.0f} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
