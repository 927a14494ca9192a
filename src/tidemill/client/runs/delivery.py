"""Downloads and checks the results of a finished batch."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tidemill.client.files import join
from tidemill.client.http.client import Client
from tidemill.client.http.transfers import download
from tidemill.client.progress import Display
from tidemill.client.runs.outcome import BatchResult, result_of
from tidemill.client.runs.paths import Sink
from tidemill.client.runs.reconciliation import Damaged, describe, differences, reconcile
from tidemill.schemas.resources.batch import Batch, FileReceipt, Receipt, Status
from tidemill.wording import counted


async def deliver(
    client: Client,
    batch: Batch,
    sink: Sink | None,
    source: Path | None,
    display: Display,
    *,
    span: tuple[int, int] | None = None,
    line: int = 1,
) -> tuple[BatchResult, list[str]]:
    """Download the files of a finished batch, and check them against its receipt and its input, if it is given.

    Files without a path go to a temporary folder; without an output path the output is copied to stdout, even if
    it has faults. Without a sink nothing is downloaded. The input is the `span` of bytes of the source, and begins
    with this `line` of it.

    Returns:
        The result of the batch, and lines for the summary: the balance of lines and the paths of the files.

    Raises:
        Refused: The service no longer has a file.
        Unreachable: The service went away.
    """
    notes: list[str] = []
    faults: list[str] = []
    # A batch whose input was rejected has no results.
    if sink is not None and batch.status is not Status.FAILED:
        notes, faults = await _delivered(client, batch, sink, source, display, span=span)
    return result_of(batch, await client.errors(batch), faults, line=line), notes


async def _delivered(
    client: Client,
    batch: Batch,
    sink: Sink,
    source: Path | None,
    display: Display,
    *,
    span: tuple[int, int] | None,
) -> tuple[list[str], list[str]]:
    """Download and check the files; returns notes and faults."""
    with tempfile.TemporaryDirectory(prefix="tidemill-") as folder:
        paths = sink.output or Path(folder) / "output.jsonl", sink.errors or Path(folder) / "errors.jsonl"
        receipt = batch.tidemill.receipt or Receipt(lines=0)
        outputs = batch.tidemill.output_file_ids or (batch.output_file_id,)
        output = await _fetch(client, outputs, paths[0], display, name="output", promised=receipt.output)
        errors = await _fetch(
            client, (batch.error_file_id,), paths[1], display, name="errors", promised=receipt.errors
        )
        notes, faults = await asyncio.to_thread(_checked, batch, source, span, paths, (output, errors))
        if sink.output is None and output:
            await asyncio.to_thread(copy_to_stdout, paths[0])
    notes += places(sink, output, errors)
    if sink.receipt and batch.tidemill.receipt:
        sink.receipt.write_text(receipt.model_dump_json(indent=2) + "\n", "utf-8")
        notes.append(f"receipt: {sink.receipt}")
    return notes, faults


async def _fetch(
    client: Client,
    file_ids: Sequence[str | None],
    path: Path,
    display: Display,
    *,
    name: str,
    promised: FileReceipt | None,
) -> FileReceipt | None:
    """Download a file; numbered files are joined."""
    if file_ids[0] is None:
        # A file of an earlier run would pass for the output of this one.
        await asyncio.to_thread(path.unlink, missing_ok=True)
        return None
    display.transfer(name, promised.bytes if promised else None)
    if len(file_ids) == 1:
        return await download(client, file_ids[0], path, display.moved)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        parts = []
        for file_id in file_ids:
            assert file_id is not None
            parts.append(Path(folder) / file_id)
            await download(client, file_id, parts[-1], display.moved)
        return await asyncio.to_thread(join, parts, path)


def _checked(
    batch: Batch,
    source: Path | None,
    span: tuple[int, int] | None,
    paths: tuple[Path, Path],
    files: tuple[FileReceipt | None, FileReceipt | None],
) -> tuple[list[str], list[str]]:
    """Check the files; returns the balance, if it is known, and faults."""
    receipt = batch.tidemill.receipt
    faults = differences(receipt, *files) if receipt else []
    if source is None:
        return [], faults
    output, errors = (path if file else None for path, file in zip(paths, files, strict=True))
    try:
        found = reconcile(source, output, errors, span=span)
    except Damaged as error:
        return [], [str(error)]
    if receipt and receipt.lines != found.lines:
        faults.append(f"the receipt says {counted(receipt.lines, 'line')}, the input has {found.lines:,}")
    if not found.is_exact:
        faults.append(f"{found.sentence()}; for example {', '.join(found.examples)}")
    return [found.sentence()], faults


def places(sink: Sink, output: FileReceipt | None, errors: FileReceipt | None) -> list[str]:
    """Paths, sizes and hashes of the results, as lines for the summary."""
    found = [f"output: {sink.output}, {describe(output)}"] if sink.output and output else []
    if errors:
        found.append(f"errors: {sink.errors or '--errors FILE keeps them'}, {describe(errors)}")
    return found


def copy_to_stdout(output: Path) -> None:
    """Copy a file to stdout."""
    with output.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
    sys.stdout.flush()
