"""`tidemill bench`: runs the cases, prints, saves and compares the results. No result is a failure."""

import asyncio
import json
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from tidemill.bench.cases import CASES, Case, lines, quantile, table
from tidemill.bench.flow import Flow
from tidemill.bench.service import KEY, Mock, Peak, Service, cpu_seconds
from tidemill.client.http.client import Client
from tidemill.client.http.transfers import upload
from tidemill.schemas.resources.batch import TERMINAL

POLL_SECONDS_MIN = 0.01
POLL_SECONDS_MAX = 0.1
QUICK_LINES_MAX = 1_000
"""Up to this size a batch is polled often; frequent polls of larger batches would slow the service down."""

Result = dict[str, float]


def main(mock: str, only: list[str], save: Path | None, compare: Path | None) -> None:
    """Run cases against a mock backend, by default all, and print a table of the results.

    `save` is a file for the results as JSON, `compare` one of earlier results, to which the table shows ratios.
    """
    cases = [case for case in CASES if not only or case.name in only]
    before = json.loads(compare.read_text("utf-8")) if compare else {}
    results = asyncio.run(_measured(mock, cases))
    sys.stdout.write(table(results, before) + "\n")
    if save is not None:
        save.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


async def _measured(mock: str, cases: list[Case]) -> dict[str, Result]:
    results = {}
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder:
        async with Service(Path(folder) / "data", mock) as service, Client(service.base_url, KEY) as client:
            backend = Mock(mock)
            for case in cases:
                path = Path(folder) / "input.jsonl"
                with path.open("wb") as file:
                    file.writelines(lines(case))
                await backend.behave(dict(case.backend))
                flow = Flow(case, backend)
                results[case.name] = await _case(case, path, client, service, flow)
                shown = "  ".join(f"{name} {value:.4g}" for name, value in results[case.name].items())
                sys.stderr.write(f"{case.name}: {shown}\n")
    return results


async def _case(case: Case, path: Path, client: Client, service: Service, flow: Flow) -> Result:
    began = time.monotonic()
    input_id = await upload(client, path, lambda _: None)
    uploaded = time.monotonic()
    cpu = cpu_seconds(service.processes)
    peak = Peak(service.processes)
    helpers = [asyncio.ensure_future(peak.watch()), asyncio.ensure_future(flow.watch())]
    start = time.monotonic()
    runs = await _batches(client, input_id, case)
    end = time.monotonic()
    for helper in helpers:
        helper.cancel()
    await asyncio.gather(*helpers, return_exceptions=True)
    total = case.lines * case.batches
    used = {stage: after - cpu[stage] for stage, after in cpu_seconds(service.processes).items()}
    stats = await flow.backend.stats()
    return {
        "upload_seconds": uploaded - began,
        "seconds": end - start,
        "lines_per_second": total / (end - start),
        "ideal_share": case.ideal_seconds / (end - start),
        "backend_idle_share": flow.idle_share(case.ideal_seconds),
        "last_reply_to_completed_seconds": end - flow.ended_at if flow.ended_at else 0.0,
        **_quantiles(runs),
        "cpu_ms_per_line": sum(s for name, s in used.items() if name != "kafka") * 1000 / total,
        **{f"cpu_ms_per_line_{stage}": seconds * 1000 / total for stage, seconds in used.items()},
        **{f"peak_mib_{stage}": mib for stage, mib in peak.mib.items()},
        "calls": stats["calls"],
        "refused": stats["calls"] - stats["ok"],
        "repeats": stats["repeats"],
        "in_flight_mean": flow.mean,
    }


async def _batches(client: Client, input_id: str, case: Case) -> "list[Run]":
    """Run the batches of a case, as many at a time as it has clients."""
    start = time.monotonic()
    left = iter(range(case.batches))
    runs: list[Run] = []

    async def one() -> None:
        for number in left:
            if case.batches_per_second:
                await asyncio.sleep(start + number / case.batches_per_second - time.monotonic())
            runs.append(await _batch(client, input_id, case))

    await asyncio.gather(*(one() for _ in range(case.clients)))
    return runs


def _quantiles(runs: "list[Run]") -> Result:
    return {
        "create_p99_seconds": quantile([run.create_seconds for run in runs], 0.99),
        "poll_p99_seconds": quantile([poll for run in runs for poll in run.poll_seconds], 0.99),
        "batch_p50_seconds": quantile([run.total_seconds for run in runs], 0.5),
        "batch_p99_seconds": quantile([run.total_seconds for run in runs], 0.99),
        "output_mib": sum(run.output_bytes for run in runs) / (1 << 20),
    }


@dataclass(frozen=True, kw_only=True)
class Run:
    """The measurements of one batch, taken by its client."""

    create_seconds: float
    total_seconds: float
    poll_seconds: list[float]
    """How long each request for its state took."""
    output_bytes: int


async def _batch(client: Client, input_id: str, case: Case) -> Run:
    """Create a batch and wait for its end."""
    start = time.monotonic()
    batch = await client.create(input_id, case.endpoint, "24h", {}, key=uuid.uuid4().hex)
    created = time.monotonic() - start
    wait_seconds = POLL_SECONDS_MIN if case.lines <= QUICK_LINES_MAX and case.clients == 1 else POLL_SECONDS_MAX
    polls = []
    while batch.status not in TERMINAL:
        await asyncio.sleep(wait_seconds)
        asked = time.monotonic()
        batch = await client.batch(batch.id)
        polls.append(time.monotonic() - asked)
    receipt = batch.tidemill.receipt
    size = receipt.output.bytes if receipt and receipt.output else 0
    return Run(
        create_seconds=created, total_seconds=time.monotonic() - start, poll_seconds=polls, output_bytes=size
    )
