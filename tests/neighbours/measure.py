"""Effects of a flood on another project: the time of its creates, and the peak memory of each process."""

import asyncio
import multiprocessing
import os
import re
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from neighbours.floods import BIG, FLOODS, Target, client, create, line, rule, upload
from openai import OpenAI
from support.backend import Backend
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX

STAGES = ("api", "ingest", "processors", "results", "webhooks")
STAGES_FILE = Path(__file__).parents[2] / "deploy" / "kubernetes" / "stages.yaml"
PAUSE_SECONDS = 0.1
START_SECONDS = 2.0
"""Time that a flood runs before the measurement."""
TIMES_MAX = 3.0
UNITS = {"Mi": 1, "Gi": 1024}


@dataclass(kw_only=True)
class Row:
    """One measurement."""

    flood: str
    seconds: list[float] = field(default_factory=list)
    """Of each create of the neighbour."""
    steps: int = 0
    """Steps of the flood."""
    failures: int = 0
    """Creates that failed."""
    peaks: dict[str, float] = field(default_factory=dict)
    """MiB, by stage."""

    @property
    def p99(self) -> float:
        """Seconds."""
        ranked = sorted(self.seconds)
        return ranked[min(len(ranked) - 1, int(0.99 * len(ranked)))] if ranked else float("inf")


def limits() -> dict[str, float]:
    """Memory limit of each stage in `deploy/`, in MiB."""
    found = {}
    for one in yaml.safe_load_all(STAGES_FILE.read_text("utf-8")):
        if one["kind"] == "Deployment":
            (container,) = one["spec"]["template"]["spec"]["containers"]
            ((number, unit),) = re.findall(r"^(\d+)(\w+)$", container["resources"]["limits"]["memory"])
            found[container["args"][0]] = float(number) * UNITS[unit]
    return found


def measure(folder: Path, floods: list[str], seconds: float) -> list[Row]:
    """Start an installation, and measure a neighbour alone and beside each flood.

    Args:
        folder: For its data.
        floods: Which ones.
        seconds: How long to measure each.
    """
    with Backend(rule) as backend:
        models = backend.models("chat", BIG, max_in_flight=48)
        with Stack(folder, models) as stack:
            keys = {project: _key(stack, project) for project in ("a", "b")}
            rows = [asyncio.run(_measured(stack, keys, None, seconds))]
            for flood in floods:
                rows.append(asyncio.run(_measured(stack, keys, flood, seconds)))
                print(show(rows[:1] + rows[-1:]).splitlines()[-1], flush=True)  # noqa: T201  it takes minutes
    return rows


def show(rows: list[Row]) -> str:
    """The table, in Markdown."""
    alone, most = rows[0], limits()
    told = " | ".join(f"{stage} (of {most[stage]:.0f})" for stage in STAGES)
    lines = [
        f"| A floods with | steps of A | creates of B | p99, ms | times alone | {told} |",
        "|" + "---|" * (5 + len(STAGES)),
    ]
    for row in rows:
        peaks = " | ".join(f"{row.peaks[stage]:.0f}" for stage in STAGES)
        count = f"{len(row.seconds)}" + (f", {row.failures} failed" if row.failures else "")
        lines.append(
            f"| {row.flood} | {row.steps} | {count} | {1e3 * row.p99:.0f} | {row.p99 / alone.p99:.1f} | {peaks} |"
        )
    return "\n".join(lines)


def faults(rows: list[Row]) -> list[str]:
    """Values beyond their bounds."""
    found, most = [], limits()
    for row in rows:
        found += [
            f"{row.flood}: {stage} had {row.peaks[stage]:.0f} MiB"
            for stage in STAGES
            if row.peaks[stage] > most[stage]
        ]
        if row.failures:
            found.append(f"{row.flood}: {row.failures} creates failed")
        if row.p99 > TIMES_MAX * rows[0].p99:
            found.append(f"{row.flood}: p99 is {row.p99 / rows[0].p99:.1f} times that of B alone")
    return found


async def _measured(stack: Stack, keys: dict[str, str], flood: str | None, seconds: float) -> Row:
    spawn = multiprocessing.get_context("spawn")
    row = Row(flood=flood or "nothing")
    flooding = None
    if flood is not None:
        begun, steps = spawn.Event(), spawn.Value("q", 0)
        kafka = stack.clients("producers")
        target = Target(api=stack.api, key=keys["a"], kafka=kafka, begun=begun, steps=steps)
        # In a process of its own, so that it does not slow down the neighbour's clock.
        flooding = spawn.Process(target=_flood, args=(flood, target), daemon=True)
        flooding.start()
        assert await asyncio.to_thread(begun.wait, WAIT_SECONDS_MAX), f"{flood} does not begin"
        await asyncio.sleep(START_SECONDS)
    _forget_peaks(stack)
    try:
        # So is the neighbour: this process is the backend.
        with ProcessPoolExecutor(1, spawn) as pool:
            loop = asyncio.get_running_loop()
            row.seconds, row.failures = await loop.run_in_executor(pool, _neighbour, stack.api, keys["b"], seconds)
        row.peaks = {stage: sum(map(_peak, stack.pids(stage))) for stage in STAGES}
    finally:
        if flooding is not None:
            flooding.kill()
            flooding.join()
            row.steps = steps.value
    return row


def _neighbour(api: str, key: str, seconds: float) -> tuple[list[float], int]:
    return asyncio.run(_create(api, key, seconds))


async def _create(api: str, key: str, seconds: float) -> tuple[list[float], int]:
    """Seconds of each create, and the number of failures."""
    taken, failures = [], 0
    async with client(api, key) as asking:
        file_id = await upload(asking, line(0))
        until = time.monotonic() + seconds
        while (start := time.monotonic()) < until:
            try:
                (await create(asking, file_id)).raise_for_status()
            except httpx.HTTPError:
                failures += 1
            taken.append(time.monotonic() - start)
            await asyncio.sleep(PAUSE_SECONDS)
    return taken, failures


def _flood(name: str, target: Target) -> None:
    os.nice(19)
    with suppress(KeyboardInterrupt):
        asyncio.run(FLOODS[name](target))  # type: ignore[arg-type]  # each is a coroutine function


def _key(stack: Stack, project: str) -> str:
    body = {"name": project, "project": project, "role": "write"}
    with OpenAI(base_url=stack.api, api_key=KEY) as admin:
        made: Any = admin.post("/admin/keys", body=body, cast_to=object)
    return str(made["secret"])


def _forget_peaks(stack: Stack) -> None:
    for stage in STAGES:
        for pid in stack.pids(stage):
            Path(f"/proc/{pid}/clear_refs").write_text("5", "utf-8")


def _peak(pid: int) -> float:
    (found,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text("utf-8"))
    return int(found) / 1024
