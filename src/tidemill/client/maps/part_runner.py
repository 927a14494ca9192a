"""Runs a part as a batch, repairs answers that do not fit the schema, and joins rows and answers."""

import asyncio
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tidemill.client.errors import Rejected
from tidemill.client.files import join, sha256_of
from tidemill.client.http.client import Bounds, Client
from tidemill.client.maps.parts import Part, PartFolder, request_bytes_max
from tidemill.client.maps.task import Task
from tidemill.client.progress import Display
from tidemill.client.runs.batch_runner import BatchRunner
from tidemill.client.runs.journal import Job, Journal, Plan
from tidemill.client.runs.outcome import BatchResult, Fault
from tidemill.client.runs.paths import size_of
from tidemill.client.runs.plan import Shard, cut
from tidemill.schemas.resources.batch import Status
from tidemill.storage.atomic_file import replacing
from tidemill.tables import pieces
from tidemill.tables.pieces import Round
from tidemill.tables.replies import number_of
from tidemill.tables.requests import Chats
from tidemill.wording import counted

FAULTS_MAX: Final = 10
"""Number of distinct faults that a message shows."""


class PartRunner:
    """Runs the parts of a table."""

    def __init__(self, client: Client, task: Task, job: Job, bounds: Bounds) -> None:
        """The batches are those of `job`, except for their inputs."""
        self._client, self._task, self._job, self._bounds = client, task, job, bounds
        self._window = job.window or bounds.usual_window

    async def run(self, part: Part, folder: PartFolder, display: Display) -> list[BatchResult]:
        """Run a part to its piece, or go on with it; returns the results of its batches.

        Raises:
            Rejected: The service rejected the requests; rows of a rejected repair keep their first answers.
            Unreachable: The service went away; the batch keeps running.
            Refused: The service rejected a request.
            OtherService: The address is that of another service.
            OSError: The disk is full.
        """
        if folder.piece.exists():
            return folder.results()
        rounds: list[Round] = []
        results: list[BatchResult] = []
        requests = folder.requests(0)
        while part.lines and await asyncio.to_thread(self._has_requests, requests, rounds):
            found, ended = await self._round(part, folder, len(rounds), display, results)
            rounds.append(found)
            results += ended
            if len(rounds) > self._task.repairs:
                break
            requests, display = folder.requests(len(rounds)), Display()
        return await asyncio.to_thread(self._join, part, folder, rounds, results)

    def _has_requests(self, requests: Path, rounds: list[Round]) -> bool:
        """Make the requests of a repair, unless they exist; whether there are any.

        A row whose request would be too long keeps its fault.
        """
        if not requests.exists():
            assert isinstance(self._task.requests, Chats)
            found = pieces.repairs(rounds[-1], self._task.requests, self._task.reader)
            with replacing(requests) as file:
                file.writelines(line for line in found if len(line) <= request_bytes_max(self._bounds))
        return requests.stat().st_size > 0

    async def _round(
        self, part: Part, folder: PartFolder, attempt: int, display: Display, before: list[BatchResult]
    ) -> tuple[Round, list[BatchResult]]:
        """Run the requests of a part as a batch, or those of a repair, which are longer, as one or several."""
        requests = folder.requests(attempt)
        sha256, size = await asyncio.to_thread(sha256_of, requests), size_of(requests)
        job = msgspec.structs.replace(self._job, sha256=sha256, rerun_of=before[0].batch if before else None)
        with Journal(folder.journal(attempt), self._client.wording) as journal:
            if (plan := journal.plan(job)) is None:
                shards = [Shard(number=0, start=0, end=size, lines=part.lines, line=1)]
                if attempt:
                    shards = await asyncio.to_thread(cut, requests, self._bounds, endpoint=job.endpoint)
                plan = Plan(job=job, window=self._window, key=uuid.uuid4().hex, shards=shards)
                journal.start(plan)
            name = f"{self._task.name}.{part.number:06}{f'.repair{attempt}' if attempt else ''}"
            # The join compares the results of the first batch with the rows: it reads them anyway.
            runner = BatchRunner(self._client, requests, name, plan, journal, reconciles=attempt > 0)
            await runner.run(display, 1)
            results = runner.results
            files = [journal.results(shard.number) for shard in plan.shards]
        if not attempt and results[0].status == Status.FAILED:
            raise Rejected(
                "\n  ".join(("the service rejected these requests", *_faults(requests, results[0].refusals)))
            )
        output, errors = files[0]
        if len(files) > 1:
            output, errors = (folder.path / f"{attempt}.{kind}.jsonl" for kind in ("output", "errors"))
            for side, path in enumerate((output, errors)):
                await asyncio.to_thread(join, [pair[side] for pair in files], path)
        return Round(requests=requests, output=output, errors=errors, prices=_prices(results)), results

    def _join(
        self, part: Part, folder: PartFolder, rounds: list[Round], results: list[BatchResult]
    ) -> list[BatchResult]:
        """Write the piece; returns the results, with what the first batch lacks."""
        with replacing(folder.piece) as file:
            found = pieces.write(file, folder.rows, part.first, rounds, self._task.reader)
            if found.missing or found.foreign:
                said = f"{counted(part.lines, 'row')} asked, {found.missing:,} missing, {found.foreign:,} foreign"
                damage = (*results[0].damage, said)
                results = [msgspec.structs.replace(results[0], damage=damage), *results[1:]]
            folder.save_results(results)
        folder.clear()
        return results


def _prices(results: Iterable[BatchResult]) -> tuple[float, float] | None:
    """Cost of an input and of an output token over all batches that ran; None if that of one is not known."""
    costs, tokens = [0.0, 0.0], [0, 0]
    for result in results:
        if result.status == Status.FAILED:
            continue
        if result.prices is None:
            return None
        for side in (0, 1):
            costs[side] += result.prices[side] * result.tokens[side]
            tokens[side] += result.tokens[side]
    read, written = (cost / count if count else 0.0 for cost, count in zip(costs, tokens, strict=True))
    return read, written


def _faults(requests: Path, refusals: Sequence[Fault]) -> list[str]:
    """The faults that the service found, each with the first of its rows."""
    found: dict[str, int | None] = {}
    for fault in refusals:
        found.setdefault(fault.text, fault.line)
    wanted = set(found.values())
    with requests.open("rb") as file:
        rows = {at: number_of(line) for at, line in enumerate(file, start=1) if at in wanted}
    return [f"row {rows[line]}{text}" if line in rows else f"table{text}" for text, line in found.items()][
        :FAULTS_MAX
    ]
