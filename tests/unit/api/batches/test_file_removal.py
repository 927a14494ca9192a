"""Deletions by sweeps, with a real view and a real folder; the log is a list."""

from collections.abc import AsyncIterator

import pytest
from support.dependencies import NOW, open_dependencies

from tidemill.api.batches import file_removal
from tidemill.api.dependencies import Dependencies
from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas.log import topics
from tidemill.schemas.log.messages import BatchRecord, FileRecord
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.schemas.resources.file import File


@pytest.fixture
async def deps(tmp_path):
    """Dependencies on a folder, with the files `f` and `g` that expire at `NOW`."""
    async with open_dependencies(tmp_path) as deps:
        for name in ("f", "g"):
            await deps.store.write(f"files/{name}", content())
            file = File(id=name, bytes=1, created_at=1, expires_at=NOW, filename="f", purpose="batch")
            record = FileRecord(project="p", file=file, key=f"files/{name}", sha256="0" * 64)
            deps.view.put_file(record, -1)
        yield deps


async def content() -> AsyncIterator[bytes]:
    """One byte."""
    yield b"x"


async def is_stored(deps: Dependencies, name: str) -> bool:
    """Whether the store has a file's bytes."""
    try:
        return await deps.store.size(f"files/{name}") > 0
    except NotFound:
        return False


def batch(status: Status) -> BatchRecord:
    """A batch that reads `f`."""
    return BatchRecord(
        project="p",
        batch=Batch(
            id="b", endpoint="/v1/embeddings", input_file_id="f", completion_window="24h", status=status,
            created_at=1, expires_at=2,
        ),
    )  # fmt: skip


async def test_a_sweep_deletes_expired_files(deps):
    """Their records, rows and bytes; a second sweep finds none."""
    assert await file_removal.sweep(deps) == 2
    assert sorted(deps.log.records) == [(topics.FILES.name, "f", None), (topics.FILES.name, "g", None)]
    assert not await is_stored(deps, "f")
    assert await file_removal.sweep(deps) == 0


async def test_bytes_that_a_batch_reads_stay_until_its_end(deps):
    """Though its owner no longer sees the file."""
    deps.view.put_batch(batch(Status.IN_PROGRESS))
    await file_removal.sweep(deps)
    assert (await is_stored(deps, "f"), await is_stored(deps, "g")) == (True, False)
    deps.view.put_batch(batch(Status.COMPLETED))
    await file_removal.sweep(deps)
    assert not await is_stored(deps, "f")


async def test_a_file_stays_while_the_log_is_away(deps):
    """Nothing is deleted without a record."""
    deps.log.away = True
    with pytest.raises(LogUnavailable):
        await file_removal.sweep(deps)
    assert await is_stored(deps, "f")
    deps.log.away = False
    assert await file_removal.sweep(deps) == 2
