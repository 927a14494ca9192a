"""`tidemill bench`: runs the cases, prints, saves and compares the results. No result is a failure."""

import asyncio
import functools
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tidemill.bench.cases import CASES, Case, lines
from tidemill.bench.flow import Flow
from tidemill.bench.report import Figures, Round, Summary, quantile, table
from tidemill.bench.service import KEY, BareError, Mock, Peak, Service, cpu_seconds, run_bare
from tidemill.client.http.client import Client
from tidemill.client.http.transfers import upload
from tidemill.schemas.resources.batch import TERMINAL
from tidemill.wording import counted

POLL_SECONDS_MIN = 0.01
POLL_SECONDS_MAX = 0.1
QUICK_LINES_MAX = 1_000
"""Up to this size a batch is polled often. Frequent polls of larger batches would slow the service down, so all
their clients together poll as often as one does alone."""

BARE = (sys.executable, "-P", "-m", "tidemill.bench.bare")


def main(
    mock: str, only: list[str], rounds: int, bare: Path | None, files: "Files", *, lines_max: int | None = None
) -> None:
    """Run cases against a mock backend, by default all, and print a table of the results.

    Each round of a case runs the product and the bare client in turn, in reverse order every second round.
    `bare` is a program to run instead of Python's bare client; it takes the same arguments. No batch has more than
    `lines_max` lines, if that is given.
    """
    cases = [case for case in CASES if not only or case.name in only]
    if lines_max is not None:
        cases = [replace(case, lines=min(case.lines, lines_max)) for case in cases]
    before = files.read()
    command = BARE if bare is None else (str(bare.absolute()),)
    results = asyncio.run(_measured(Mock(mock), cases, rounds, command))
    sys.stdout.write(table(results, before) + "\n")
    files.write(results)


class CompareError(Exception):
    """The file of an earlier run has no results; the text says so."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of the results, as JSON, and of an earlier run's, which are shown beside them."""

    save: Path | None = None
    compare: Path | None = None

    def read(self) -> dict[str, Summary]:
        """The earlier results; none without a file.

        Raises:
            CompareError: The file has none.
        """
        if self.compare is None:
            return {}
        try:
            return TypeAdapter(dict[str, Summary]).validate_json(self.compare.read_bytes())
        except ValidationError as error:
            raise CompareError(f"{self.compare} has no results that `--save` wrote") from error

    def write(self, results: dict[str, Summary]) -> None:
        """Save results."""
        if self.save is not None:
            found = {name: asdict(result) for name, result in results.items()}
            self.save.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


async def _measured(mock: Mock, cases: list[Case], rounds: int, bare: Sequence[str]) -> dict[str, Summary]:
    results = {}
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder:
        async with Service(Path(folder) / "data", mock) as service, Client(service.base_url, KEY) as client:
            for case in cases:
                run = CaseRun(case, Path(folder), mock, service, client)
                await run.prepare()
                results[case.name] = Summary.of([await run.round(number, bare) for number in range(rounds)])
                _say(f"{case.name}: {_shown(results[case.name].product)}")
    return results


Side = Callable[[Flow], Awaitable[Figures]]


class CaseRun:
    """One case: its inputs, which all rounds use, and its two sides."""

    def __init__(self, case: Case, folder: Path, mock: Mock, service: Service, client: Client) -> None:
        self._case = case
        self._mock = mock
        self._service = service
        self._client = client
        self._paths = {model: folder / f"{model}.jsonl" for model in case.models}
        self._ids: list[str] = []

    async def prepare(self) -> None:
        """Write and upload an input for each model."""
        for model, path in self._paths.items():
            with path.open("wb") as file:
                file.writelines(lines(self._case, model))
            began = time.monotonic()
            self._ids.append(await upload(self._client, path, lambda _: None))
            _say(f"{self._case.name}: uploaded in {time.monotonic() - began:.3f} s")

    async def round(self, number: int, bare: Sequence[str]) -> Round:
        """Run both sides; one that fails is reported, and missing in the round."""
        sides: list[tuple[str, Side]]
        sides = [("product", self._product), ("bare", functools.partial(self._bare, bare))]
        found: dict[str, Figures | None] = {}
        for name, side in reversed(sides) if number % 2 else sides:
            await self._mock.behave(dict(self._case.backend))
            flow = Flow(self._case, self._mock)
            watching = asyncio.ensure_future(flow.watch())
            try:
                found[name] = await side(flow)
            except (BareError, BatchError) as error:
                found[name] = None
                _say(f"{self._case.name}: {name}: {error}")
            finally:
                watching.cancel()
                (ended,) = await asyncio.gather(watching, return_exceptions=True)
            if isinstance(ended, Exception):
                found[name] = None
                _say(f"{self._case.name}: {name}: left out, because the watch of the backend failed: {ended!r}")
        result = Round(product=found["product"], bare=found["bare"])
        _say(f"{self._case.name}: round {number + 1}: ratio {result.ratio or 0:.3f}")
        return result

    async def _bare(self, command: Sequence[str], flow: Flow) -> Figures:
        paths = list(self._paths.values()) * (self._case.batches // len(self._paths))
        found = await run_bare(command, self._case, self._mock, paths)
        return {
            "seconds": found["seconds"],
            "cpu_ms_per_line": found["cpu_seconds"] * 1000 / self._case.total,
            **await _seen(flow),
        }

    async def _product(self, flow: Flow) -> Figures:
        case, processes = self._case, self._service.processes
        cpu = cpu_seconds(processes)
        peak = Peak(processes)
        sampling = asyncio.ensure_future(peak.watch())
        start = time.monotonic()
        try:
            runs = await _batches(self._client, self._ids, case)
        finally:
            sampling.cancel()
        end = time.monotonic()
        used = {stage: after - cpu[stage] for stage, after in cpu_seconds(processes).items()}
        return {
            "seconds": end - start,
            "lines_per_second": case.total / (end - start),
            **({"last_reply_to_completed_seconds": end - flow.ended_at} if flow.ended_at else {}),
            **_quantiles(runs),
            "cpu_ms_per_line": sum(s for name, s in used.items() if name != "kafka") * 1000 / case.total,
            **{f"cpu_ms_per_line_{stage}": seconds * 1000 / case.total for stage, seconds in used.items()},
            **{f"peak_mib_{stage}": mib for stage, mib in peak.mib.items()},
            **await _seen(flow),
        }


async def _seen(flow: Flow) -> Figures:
    """The calls, as the backend counts them."""
    stats = await flow.backend.stats()
    return {
        "calls": stats["calls"],
        "refused": stats["calls"] - stats["ok"],
        "repeats": stats["repeats"],
        "in_flight_mean": flow.mean,
    }


def _shown(figures: Figures) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


async def _batches(client: Client, input_ids: list[str], case: Case) -> "list[Run]":
    """Run the batches of a case, as many at a time as it has clients, with the inputs in turn."""
    left = iter(range(case.batches))
    runs: list[Run] = []

    async def one() -> None:
        for number in left:
            run = await _batch(client, input_ids[number % len(input_ids)], case)
            runs.append(run)

    await asyncio.gather(*(one() for _ in range(case.clients)))
    if failed := [run.status for run in runs if run.status != "completed"]:
        raise BatchError(
            f"{counted(len(failed), 'batch')} did not complete, but ended as {', '.join(sorted(set(failed)))}"
        )
    return runs


def _quantiles(runs: "list[Run]") -> dict[str, float]:
    return {
        "create_p99_seconds": quantile([run.create_seconds for run in runs], 0.99),
        "poll_p99_seconds": quantile([poll for run in runs for poll in run.poll_seconds], 0.99),
        "batch_p50_seconds": quantile([run.total_seconds for run in runs], 0.5),
        "batch_p99_seconds": quantile([run.total_seconds for run in runs], 0.99),
        "output_mib": sum(run.output_bytes for run in runs) / (1 << 20),
    }


class BatchError(Exception):
    """A batch did not complete."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The measurements of one batch, taken by its client."""

    status: str
    create_seconds: float
    total_seconds: float
    poll_seconds: list[float]
    """How long each request for the batch's state took."""
    output_bytes: int


def _poll_seconds(case: Case) -> float:
    if case.lines > QUICK_LINES_MAX:
        return POLL_SECONDS_MAX * case.clients
    return POLL_SECONDS_MIN if case.clients == 1 else POLL_SECONDS_MAX


async def _batch(client: Client, input_id: str, case: Case) -> Run:
    """Create a batch and wait for its end."""
    start = time.monotonic()
    batch = await client.create(input_id, case.endpoint, "24h", key=uuid.uuid4().hex)
    created = time.monotonic() - start
    wait_seconds = _poll_seconds(case)
    polls = []
    while batch.status not in TERMINAL:
        await asyncio.sleep(wait_seconds)
        asked = time.monotonic()
        batch = await client.batch(batch.id)
        polls.append(time.monotonic() - asked)
    receipt = batch.tidemill.receipt
    size = receipt.output.bytes if receipt and receipt.output else 0
    return Run(
        status=batch.status,
        create_seconds=created,
        total_seconds=time.monotonic() - start,
        poll_seconds=polls,
        output_bytes=size,
    )
