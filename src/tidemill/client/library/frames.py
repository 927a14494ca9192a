"""Asks a model about each row of a table in memory, through the run of `tidemill map`.

A run keeps its journal and its answers in the user's state directory, named by table and question: the same call
resumes it. The answers are removed once the caller has the result; if it never gets it, after `KEPT_SECONDS`.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from tidemill.client.errors import UsageError
from tidemill.client.http.client import Client
from tidemill.client.maps.job import MapOptions, run
from tidemill.client.maps.task import ChatOptions, Task, chats, embeddings, identity
from tidemill.client.runs.journal import Journal, state_folder
from tidemill.schemas.json_schema import SchemaError
from tidemill.tables import TableError
from tidemill.tables.sources.files import JOURNAL
from tidemill.tables.sources.frames import FrameSource, like, whole
from tidemill.tables.sources.rows import Source
from tidemill.terminal import Console

NAME, OUTPUT = "table", "output.arrow"


@dataclass(frozen=True)
class Outcome:
    """The result of a call, whose answers are still on disk."""

    table: Any
    _output: Path

    def handed_over(self) -> Any:
        """The result; removes the answers from disk, so that the same call asks again."""
        self._output.unlink(missing_ok=True)
        # An equal call of another process may be at work in the folder.
        with suppress(OSError):
            self._output.parent.rmdir()
        return self.table


async def mapped(
    console: Console, client: Client, frame: Any, keep: Sequence[str], options: Mapping[str, Any], **asked: Any
) -> Outcome:
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
) -> Outcome:
    """The table with the column of the vectors; see `AsyncTidemill.embed`."""
    return await _run(console, client, frame, lambda source: embeddings(source, NAME, keep, **asked), options)


async def _run(
    console: Console, client: Client, frame: Any, task_of: Callable[[Source], Task], options: Mapping[str, Any]
) -> Outcome:
    try:
        frame = await asyncio.to_thread(whole, frame)
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
    if options.get("again"):
        output.unlink(missing_ok=True)
    if (answers := await asyncio.to_thread(_finished, output)) is None:
        await run(console, client, task, MapOptions(output=str(output), tries=0, force=True, **options))
        answers = await asyncio.to_thread(_read, output)
    try:
        return Outcome(like(frame, answers, task.kept), output)
    except Exception as error:
        error.add_note(f"The answers are in {output}; the same call reads them from there.")
        raise


def _finished(output: Path) -> pa.Table | None:
    """The answers of a finished run whose result did not reach its caller; None if there are none."""
    answers = _read(output)
    if answers is not None:
        # A crash may have left the journal, from which the call after this one would resume.
        with suppress(UsageError), Journal(output.with_name(output.name + JOURNAL)) as journal:
            journal.remove()
    return answers


def _read(path: Path) -> pa.Table | None:
    try:
        with path.open("rb") as file, ipc.open_file(file) as reader:
            return reader.read_all()
    except FileNotFoundError:
        return None
