"""The results of a batch that has ended: fetched, checked, and put where they are wanted."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tidemill.client.http import Client
from tidemill.client.progress import Display
from tidemill.client.runs.joining import join
from tidemill.client.runs.paths import Sink
from tidemill.client.runs.reconciliation import Damaged, reconcile, shown
from tidemill.schemas.resources.batch import Batch, FileReceipt, Receipt, Status


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What came of it, in sentences.

    Attributes:
        told: What was found to be in order, and where it lies.
        faults: What does not fit; empty where all is well.
    """

    told: tuple[str, ...]
    faults: tuple[str, ...]


async def delivered(
    client: Client,
    batch: Batch,
    sink: Sink,
    source: Path | None,
    display: Display,
    *,
    span: tuple[int, int] | None = None,
) -> Delivery | None:
    """Fetch the files of a batch, and check them against its receipt and against the input.

    1. The files are fetched, those without a place of their own into a folder that goes away.
    2. They are read again from disk, and compared.
    3. Without an output path, the output is copied to stdout, right or wrong: the faults say which.

    Args:
        client: The service.
        batch: A batch in a final state; one that failed has no results, and None is returned.
        sink: Where results go.
        source: The input, where it is at hand; without it only the receipt is checked.
        display: Shows the bytes.
        span: Which bytes of the source are the batch's input, the first and the one after the last; else all.

    Raises:
        Refused: A file is not there any more.
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
        fetched = (
            await _fetched(client, outputs, output, display, name="output", promised=promised[0]),
            await _fetched(client, (batch.error_file_id,), errors, display, name="errors", promised=promised[1]),
        )
        told, faults = await asyncio.to_thread(_checked, batch, source, span, (output, errors), fetched)
        if sink.output is None and fetched[0]:
            await asyncio.to_thread(_print, output)
    told += _places(batch, sink, fetched)
    return Delivery(told=tuple(told), faults=tuple(faults))


async def _fetched(
    client: Client,
    file_ids: Sequence[str | None],
    path: Path,
    display: Display,
    *,
    name: str,
    promised: FileReceipt | None,
) -> FileReceipt | None:
    """Fetch a file; numbered ones are put one after another."""
    if file_ids[0] is None:
        _forget(path)
        return None
    display.transfer(name, promised.bytes if promised else None)
    if len(file_ids) == 1:
        return await client.download(file_ids[0], path, display.moved)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        parts = []
        for file_id in file_ids:
            assert file_id is not None
            parts.append(Path(folder) / file_id)
            await client.download(file_id, parts[-1], display.moved)
        return await asyncio.to_thread(join, parts, path)


def _forget(path: Path) -> None:
    # What an earlier run left at the same place would be taken for this one's.
    path.unlink(missing_ok=True)


def _checked(
    batch: Batch,
    source: Path | None,
    span: tuple[int, int] | None,
    paths: tuple[Path, Path],
    fetched: tuple[FileReceipt | None, FileReceipt | None],
) -> tuple[list[str], list[str]]:
    receipt = batch.tidemill.receipt
    if source is None:
        return [], _differences(receipt, fetched) if receipt else []
    output, errors = (path if file else None for path, file in zip(paths, fetched, strict=True))
    try:
        found = reconcile(source, output, errors, span=span)
    except Damaged as error:
        return [], [str(error)]
    faults = found.disagrees(receipt) if receipt else []
    if not found.is_exact:
        faults.append(f"{found.sentence()}; for example {', '.join(found.examples)}")
    return [found.sentence()], faults


def _differences(receipt: Receipt, fetched: tuple[FileReceipt | None, FileReceipt | None]) -> list[str]:
    promised = (("output", receipt.output), ("errors", receipt.errors))
    return [
        f"{name}: the receipt says {shown(said)}, the file has {shown(file)}"
        for (name, said), file in zip(promised, fetched, strict=True)
        if said != file
    ]


def _places(batch: Batch, sink: Sink, fetched: tuple[FileReceipt | None, FileReceipt | None]) -> list[str]:
    places = [
        f"{name}: {path}, {shown(file)}"
        for name, path, file in zip(("output", "errors"), (sink.output, sink.errors), fetched, strict=True)
        if path and file
    ]
    if fetched[1] and sink.errors is None:
        places.append(f"errors: {shown(fetched[1])}; keep them with --errors FILE ({batch.error_file_id})")
    if sink.receipt and batch.tidemill.receipt:
        sink.receipt.write_text(batch.tidemill.receipt.model_dump_json(indent=2) + "\n", "utf-8")
        places.append(f"receipt: {sink.receipt}")
    return places


def _print(output: Path) -> None:
    with output.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
    sys.stdout.flush()
