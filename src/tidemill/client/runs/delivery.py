"""Downloads and checks the results of a finished batch."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tidemill.client.files import join
from tidemill.client.http.client import Client
from tidemill.client.http.transfers import download
from tidemill.client.progress import Display
from tidemill.client.runs.paths import Sink
from tidemill.client.runs.reconciliation import Damaged, describe, reconcile
from tidemill.schemas.resources.batch import Batch, FileReceipt, Receipt, Status


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Outcome of a download, as lines for the summary.

    Attributes:
        notes: The balance of lines and the paths of the files.
        faults: How the results differ from the receipt or the input; empty if they do not.
    """

    notes: tuple[str, ...]
    faults: tuple[str, ...]


async def deliver(
    client: Client,
    batch: Batch,
    sink: Sink,
    source: Path | None,
    display: Display,
    *,
    span: tuple[int, int] | None = None,
) -> Delivery | None:
    """Download the files of a batch, and check them against its receipt and its input.

    Files without a path go to a temporary folder; without an output path the output is copied to stdout, even if
    it has faults.

    Args:
        client: The service.
        batch: A finished batch.
        sink: Where results go.
        source: The input; without it only the receipt is checked.
        display: Shows the transfers.
        span: The bytes of the source that are the batch's input, first and after the last; None is all.

    Returns:
        The outcome; None for a batch whose input was rejected, which has no results.

    Raises:
        Refused: The service no longer has a file.
        Unreachable: The service went away.
    """
    if batch.status is Status.FAILED:
        return None
    with tempfile.TemporaryDirectory(prefix="tidemill-") as folder:
        output = sink.output or Path(folder) / "output.jsonl"
        errors = sink.errors or Path(folder) / "errors.jsonl"
        receipt = batch.tidemill.receipt
        promised = (receipt.output, receipt.errors) if receipt else (None, None)
        outputs = batch.tidemill.output_file_ids or (batch.output_file_id,)
        files = (
            await _fetch(client, outputs, output, display, name="output", promised=promised[0]),
            await _fetch(client, (batch.error_file_id,), errors, display, name="errors", promised=promised[1]),
        )
        notes, faults = await asyncio.to_thread(_checked, batch, source, span, (output, errors), files)
        if sink.output is None and files[0]:
            await asyncio.to_thread(copy_to_stdout, output)
    notes += _places(batch, sink, files)
    return Delivery(notes=tuple(notes), faults=tuple(faults))


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
        _forget(path)
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


def _forget(path: Path) -> None:
    # A file of an earlier run would pass for the output of this one.
    path.unlink(missing_ok=True)


def _checked(
    batch: Batch,
    source: Path | None,
    span: tuple[int, int] | None,
    paths: tuple[Path, Path],
    files: tuple[FileReceipt | None, FileReceipt | None],
) -> tuple[list[str], list[str]]:
    receipt = batch.tidemill.receipt
    if source is None:
        return [], _differences(receipt, files) if receipt else []
    output, errors = (path if file else None for path, file in zip(paths, files, strict=True))
    try:
        found = reconcile(source, output, errors, span=span)
    except Damaged as error:
        return [], [str(error)]
    faults = found.disagrees(receipt) if receipt else []
    if not found.is_exact:
        faults.append(f"{found.sentence()}; for example {', '.join(found.examples)}")
    return [found.sentence()], faults


def _differences(receipt: Receipt, files: tuple[FileReceipt | None, FileReceipt | None]) -> list[str]:
    promised = (("output", receipt.output), ("errors", receipt.errors))
    return [
        f"{name}: the receipt says {describe(said)}, the file has {describe(file)}"
        for (name, said), file in zip(promised, files, strict=True)
        if said != file
    ]


def _places(batch: Batch, sink: Sink, files: tuple[FileReceipt | None, FileReceipt | None]) -> list[str]:
    places = [
        f"{name}: {path}, {describe(file)}"
        for name, path, file in zip(("output", "errors"), (sink.output, sink.errors), files, strict=True)
        if path and file
    ]
    if files[1] and sink.errors is None:
        places.append(f"errors: {describe(files[1])}; --errors FILE keeps them ({batch.error_file_id})")
    if sink.receipt and batch.tidemill.receipt:
        sink.receipt.write_text(batch.tidemill.receipt.model_dump_json(indent=2) + "\n", "utf-8")
        places.append(f"receipt: {sink.receipt}")
    return places


def copy_to_stdout(output: Path) -> None:
    """Copy a file to stdout."""
    with output.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
    sys.stdout.flush()
