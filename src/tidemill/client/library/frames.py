"""Asks a model about each row of a table in memory, through the run of `tidemill map`.

A run keeps its journal in the user's state directory, named by table and question: the same call resumes it.
"""

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from tidemill.client.errors import UsageError
from tidemill.client.http.client import Client
from tidemill.client.maps.job import MapOptions, run
from tidemill.client.maps.task import ChatOptions, Task, chats, embeddings, identity
from tidemill.client.runs.journal import state_folder
from tidemill.schemas.json_schema import SchemaError
from tidemill.tables import TableError
from tidemill.tables.sources.frames import FrameSource, like
from tidemill.tables.sources.rows import Source
from tidemill.terminal import Console

NAME, OUTPUT = "table", "output.arrow"


async def mapped(
    console: Console, client: Client, frame: Any, keep: Sequence[str], options: Mapping[str, Any], **asked: Any
) -> Any:
    """The table with the columns of the answers; see `AsyncTidemill.map`."""
    return await _run(
        console,
        client,
        frame,
        lambda source: chats(source, NAME, keep, ChatOptions(**asked), os.environ),
        options,
    )


async def embedded(
    console: Console, client: Client, frame: Any, keep: Sequence[str], options: Mapping[str, Any], **asked: Any
) -> Any:
    """The table with the column of the vectors; see `AsyncTidemill.embed`."""
    return await _run(console, client, frame, lambda source: embeddings(source, NAME, keep, **asked), options)


async def _run(
    console: Console, client: Client, frame: Any, task_of: Callable[[Source], Task], options: Mapping[str, Any]
) -> Any:
    try:
        task = await asyncio.to_thread(lambda: task_of(FrameSource(frame)))
    except (TableError, SchemaError) as error:
        raise UsageError(str(error)) from error
    # Only equal calls share a folder, so that none meets the journal of another.
    call = f"{identity(task)} {client.base_url} {sorted(options['metadata'].items())} {options.get('window')}"
    folder = state_folder(
        hashlib.sha256(f"{call} {options.get('dedupe')}".encode("utf-8", "surrogatepass")).hexdigest(), os.environ
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    output = folder / OUTPUT
    await run(console, client, task, MapOptions(output=str(output), tries=0, force=True, **options))
    table = await asyncio.to_thread(_read, output)
    shutil.rmtree(folder, ignore_errors=True)
    return like(frame, table, task.kept)


def _read(path: Path) -> pa.Table:
    with path.open("rb") as file, ipc.open_file(file) as reader:
        return reader.read_all()
