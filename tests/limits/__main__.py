"""Measures the parts of the concurrency limit: prints the tables of docs/decisions/0041-limit-measured.md.

`PYTHONPATH=tests .venv/bin/python -m limits` simulates servers in virtual time, in some minutes. A run depends on
its seed alone, so the numbers are the same on every machine.
"""

from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from typing import Final

from limits.server import SAMPLE_SECONDS, Load, Seen, Simulation, always
from limits.variants import VARIANTS, Variant
from support.servers import backend

from tidemill.processors.backends.pool import BackendPool

SEEDS: Final = range(3)
USED: Final = 0.9
REFUSED_MAX: Final = 0.05
WINDOW_SECONDS: Final = 1.0
MEASURES: Final = {
    "refused": ("Refused calls, in percent of all calls", 1),
    "rate": ("Answered calls, in percent of what the capacity allows", 1),
    "follow": ("Seconds until a change of the capacity is followed", 1),
    "waiting": ("Calls that wait at the server, on average", 0),
}


def steps(*changes: tuple[float, int]) -> Callable[[float], int]:
    """A capacity that changes at given times."""
    return lambda now: next(capacity for at, capacity in reversed(changes) if now >= at)


def bursts(seconds: float, every: float) -> Callable[[float], bool]:
    """Lines for some seconds, and then none until the next burst."""
    return lambda now: now % every < seconds


def alternating(seconds: float) -> Callable[[float], int]:
    """A capacity of 200 and 50 in turn."""
    return lambda now: 50 if int(now / seconds) % 2 else 200


LATER: Final = (always, lambda now: now >= 10)
"""A second process starts later."""
LOADS: Final[Mapping[str, Load]] = {
    "capacity 64, from the start": Load(seconds=20, capacity=lambda _: 64),
    "capacity 64, after 20 s": Load(seconds=60, capacity=lambda _: 64, measured_from=20),
    "capacity 200, calls of 20 s": Load(seconds=90, capacity=lambda _: 200, latency=20.0),
    "capacity 64 to 32": Load(seconds=60, capacity=steps((0, 64), (30, 32)), measured_from=30),
    "capacity 32 to 64": Load(seconds=60, capacity=steps((0, 32), (30, 64)), measured_from=30),
    "capacity 200 to 50, calls of 2 s": Load(
        seconds=60, capacity=steps((0, 200), (30, 50)), latency=2.0, measured_from=30
    ),
    "capacity 50 to 200, calls of 2 s": Load(
        seconds=60, capacity=steps((0, 50), (30, 200)), latency=2.0, measured_from=30
    ),
    "bursts, capacity 200": Load(seconds=60, capacity=lambda _: 200, wanted=(bursts(3, 10),), measured_from=10),
    "bursts, capacity 200 and 50 in turn": Load(
        seconds=90, capacity=alternating(10), wanted=(bursts(3, 10),), measured_from=10
    ),
    "the same, calls of 2 s": Load(
        seconds=270, capacity=alternating(30), wanted=(bursts(20, 30),), latency=2.0, measured_from=30
    ),
    "refuses a tenth from 60 of 64 calls on": Load(
        seconds=80, capacity=lambda _: 64, crowded=(60, 0.1), measured_from=20
    ),
    "refuses one call in twenty at random": Load(
        seconds=40, capacity=lambda _: 64, chance=0.05, measured_from=10
    ),
    "two processes, capacity 64": Load(seconds=50, capacity=lambda _: 64, wanted=LATER, measured_from=10),
    "two processes, one in bursts": Load(
        seconds=90, capacity=lambda _: 64, wanted=(always, bursts(3, 10)), measured_from=10
    ),
    "queues, without metrics": Load(seconds=40, capacity=lambda _: 64, queues=True, latency=0.5),
    "queues, with metrics": Load(seconds=40, capacity=lambda _: 64, queues=True, has_metrics=True, latency=0.5),
    "queues, with metrics, capacity 64 to 32": Load(
        seconds=60, capacity=steps((0, 64), (30, 32)), queues=True, has_metrics=True, latency=0.5, measured_from=30
    ),
    "queues, with metrics, two processes": Load(
        seconds=40, capacity=lambda _: 64, queues=True, has_metrics=True, latency=0.5, wanted=LATER,
        measured_from=10,
    ),
}  # fmt: skip


def seen(load: Load, variant: Variant, seed: int) -> Seen:
    """Simulate one run."""
    with variant.applied():
        pools = [BackendPool([backend("http://a", variant.limit())]) for _ in load.wanted]
        return Simulation(load, pools, reads_metrics=variant.reads_metrics, seed=seed).run()


def measured(load: Load, found: Seen) -> dict[str, float]:
    """The results of one run, by measure."""
    begin = load.measured_from
    counted = [at for at, *_ in found.levels if at >= begin and any(wanted(at) for wanted in load.wanted)]
    ideal = fmean(load.capacity(at) / load.latency for at in counted) * len(counted) * SAMPLE_SECONDS
    sent = sum(at >= begin for at in found.sent)
    refused = [at for at in found.refused if at >= begin]
    answered = sum(at >= begin for at in found.answered)
    return {
        "refused": 100 * len(refused) / max(1, sent),
        "rate": 100 * answered / (ideal * (1 - load.chance)),
        "follow": max(_used(load, found), _kept(begin, found.sent, refused)),
        "waiting": fmean(waiting for at, _, waiting in found.levels if at >= begin),
    }


def _used(load: Load, found: Seen) -> float:
    """Seconds until the server works on nine tenths of its capacity."""
    begin = load.measured_from
    used = (at for at, running, _ in found.levels if at > begin and running >= USED * load.capacity(at))
    return next(used, load.seconds) - begin


def _kept(begin: float, sent: list[float], refused: list[float]) -> float:
    """Seconds until no second of the first ten has more than one refused call in twenty."""
    last = 0.0
    for number in range(100):
        low = begin + number / 10
        high = low + WINDOW_SECONDS
        bad = sum(low <= at < high for at in refused)
        if bad > REFUSED_MAX * sum(low <= at < high for at in sent):
            last = number / 10 + WINDOW_SECONDS
    return last


def row(load: Load, variant: Variant) -> dict[str, float]:
    """The mean over all seeds."""
    runs = [measured(load, seen(load, variant, seed)) for seed in SEEDS]
    return {measure: fmean(run[measure] for run in runs) for measure in runs[0]}


def tables(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    """A table for each measure, with the loads it applies to."""
    for measure, (title, digits) in MEASURES.items():
        yield f"\n{title}\n"
        yield "| load | " + " | ".join(variant.name for variant in VARIANTS) + " |"
        yield "|---" * (1 + len(VARIANTS)) + "|"
        for name, found in results.items():
            if measure == "follow" and " to " not in name:
                continue
            if measure in {"waiting", "refused"} and (measure == "waiting") != LOADS[name].queues:
                continue
            cells = [f"{found[variant.name][measure]:.{digits}f}" for variant in VARIANTS]
            yield f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Measure everything, and print the tables."""
    results = {name: {variant.name: row(load, variant) for variant in VARIANTS} for name, load in LOADS.items()}
    print("\n".join(tables(results)))  # noqa: T201  it is what the run is for


if __name__ == "__main__":
    main()
