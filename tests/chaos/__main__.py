"""`make chaos`: a real installation under faults. The exit code is 1 if anything is lost, double or wrong."""

import argparse
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from chaos.faults import COMMON, GROUPS, KINDS
from chaos.harness import Plan, run

SEEDS = 1 << 31


def chosen(text: str) -> Iterator[str]:
    """The faults of a list with commas; a group stands for its faults."""
    for name in filter(None, text.split(",")):
        yield from GROUPS.get(name, (name,))


def main() -> int:
    """Run once; prints the seed first and the table last."""
    arguments = argparse.ArgumentParser(prog="chaos", description=__doc__)
    arguments.add_argument("--seed", type=int, default=random.randrange(SEEDS))
    arguments.add_argument("--seconds", type=float, default=60.0, help="how long faults come")
    arguments.add_argument(
        "--faults", default="", help=f"of {', '.join((*KINDS, *GROUPS))}; NAME or NAME:VICTIM, commas between"
    )
    arguments.add_argument(
        "--count", type=int, help="how many faults, instead of as many as the time has room for"
    )
    arguments.add_argument("--every", type=float, default=5.0, help="seconds between two faults")
    arguments.add_argument("--batches", type=int, default=16)
    arguments.add_argument("--lines", type=int, default=8_000, help="of all batches")
    arguments.add_argument("--in-flight", type=int, default=32, help="calls to one model at one time")
    arguments.add_argument("--latency", type=float, default=0.2, help="seconds that the backend takes")
    arguments.add_argument("--slow", type=float, default=0.0, help="seconds that one line of many takes longer")
    arguments.add_argument("--answer-bytes", type=int, default=0, help="added to each answer of the own backend")
    arguments.add_argument("--part-bytes", type=int, help="size of a part of results")
    arguments.add_argument("--patience", type=float, default=240.0, help="seconds for the end of all batches")
    arguments.add_argument("--away", type=float, help="seconds that a store or a backend is away")
    arguments.add_argument("--whole", action="store_true", help="no batch is cancelled or expires")
    arguments.add_argument("--data", type=Path, help="folder to keep; without it a passing one")
    given = arguments.parse_args()
    plan = Plan(
        seed=given.seed,
        seconds=given.seconds,
        faults=tuple(chosen(given.faults)) or COMMON,
        count=given.count,
        every_seconds=given.every,
        batches=given.batches,
        lines=given.lines,
        max_in_flight=given.in_flight,
        latency_seconds=given.latency,
        slow_seconds=given.slow,
        answer_bytes=given.answer_bytes,
        part_bytes=given.part_bytes,
        end_seconds_max=given.patience,
        ends=not given.whole,
        away_seconds=given.away,
    )
    # SIGTERM becomes an exception, so that an interrupted run still stops the installation and unmounts the disks.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="tidemill-chaos-") as folder:
        report = run(plan, given.data or Path(folder) / "data", keep=given.data is not None)
    sys.stdout.write(f"\n{report}\n")
    for failure in report.failures:
        sys.stdout.write(f"FAILED: {failure}\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
