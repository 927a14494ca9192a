"""The Python client: `AsyncTidemill` runs files and lines as batches, and reads their results.

    async with AsyncTidemill() as client:
        batch = await client.submit("in.jsonl", key="2026-11-29")
        async for line in batch.results():
            print(line.custom_id, line.text)

`tidemill.client.library.blocking` has the same without `await`.
"""

import asyncio
import functools
import importlib
import os
import sys
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from types import ModuleType
from typing import Any, Final, ParamSpec, Self, TypedDict, Unpack

from pydantic import BaseModel

from tidemill.client.errors import LIBRARY, Refused, Rejected, UsageError
from tidemill.client.http.client import BATCHES, POLL_SECONDS_MAX, Client
from tidemill.client.http.transfers import upload
from tidemill.client.library.answers import Run
from tidemill.client.library.batch import AsyncBatch
from tidemill.client.library.lines import Source, name_of, sha256_of, spooled
from tidemill.client.runs.job import PARALLEL, RunOptions, finish
from tidemill.client.runs.outcome import rejection
from tidemill.client.runs.paths import Sink, endpoint_of
from tidemill.client.target import find
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.tables import TableError
from tidemill.tables.libraries import check_libraries
from tidemill.terminal import stderr_console

P = ParamSpec("P")

Text = str | Path
"""A text, or the file that has it."""
Schema = str | Mapping[str, Any] | type[BaseModel]

KEY, SHA256 = "submit_key", "input_sha256"
"""Names of the metadata by which `submit` finds the batch of a key."""
ENDED_MAX: Final = 1_000
"""Batches of a key that did not complete."""
FOUND_SECONDS_MAX: Final = 10.0
"""How long `submit` looks for a batch that another process creates under the same key."""


class BatchOptions(TypedDict, total=False):
    """Options of a batch; the service decides on missing ones."""

    endpoint: str
    """Endpoint of the lines, like `/v1/embeddings`; by default that of the first line."""
    window: str
    """Completion window, like `24h`."""
    dedupe: str
    """Equal lines to ask once: `none`, `batch` or `all`."""
    output_uri: str
    """Folder of a bucket, `s3://bucket/folder`, that the service copies the results to, too."""
    output_format: str
    """Format of these copies: `jsonl` or `parquet`."""
    metadata: Mapping[str, str]
    """Up to 16 pairs; `name` names the batch."""


class TableOptions(TypedDict, total=False):
    """Options of the batches of a table."""

    window: str
    """Completion window, like `24h`."""
    dedupe: str
    """Equal rows to ask once: `none`, `batch` or `all`."""
    metadata: Mapping[str, str]
    parallel: int
    """Concurrent batches; by default 4."""
    again: bool
    """Start over instead of resuming an interrupted call."""


def _handing_over(work: Callable[P, Coroutine[Any, Any, Any]]) -> Callable[P, Coroutine[Any, Any, Any]]:
    """The table of an `Outcome`, whose answers it removes from disk last, with no pause before the return."""

    @functools.wraps(work)
    async def call(*args: P.args, **kwargs: P.kwargs) -> Any:
        return (await work(*args, **kwargs)).handed_over()

    return call


class AsyncTidemill:
    """Client of one service; an asynchronous context manager.

    Its methods raise `UsageError` for a wrong argument, address or local file, `Refused` if the service rejects a
    request, and `Unreachable` if it does not answer. Before that, they retry safe requests for half a minute.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        data: str | os.PathLike[str] | None = None,
        progress: bool | None = None,
    ) -> None:
        """Find a service as the commands do.

        Args:
            base_url: Its address with `/v1`; by default `TIDEMILL_BASE_URL`, or the local service.
            api_key: By default `TIDEMILL_API_KEY`, or the key of the local service.
            data: The data folder of a local service; by default `TIDEMILL_DATA`, or `.tidemill`.
            progress: Whether to show progress; by default on a terminal and in a notebook.

        Raises:
            UsageError: No service is named and none runs in the data folder, or there is no key.
        """
        folder = None if data is None else Path(data)
        self._target = find(base_url=base_url, api_key=api_key, data=folder, environ=os.environ, wording=LIBRARY)
        console = stderr_console()
        is_shown = (console.is_terminal or console.is_jupyter) if progress is None else progress
        self._console = console if is_shown else stderr_console(quiet=True)
        self._connected: Client | None = None

    async def __aenter__(self) -> Self:
        self._connected = await Client(self._target.base_url, self._target.api_key, LIBRARY).__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        client, self._connected = self._client, None
        await client.__aexit__()

    @property
    def _client(self) -> Client:
        if self._connected is None:
            raise RuntimeError(
                "the client is not connected: use it inside `async with AsyncTidemill() as client:`"
            )
        return self._connected

    async def submit(
        self, source: Source, *, key: str | None = None, **options: Unpack[BatchOptions]
    ) -> "AsyncBatch":
        """Create a batch of a file or of lines, and return at once.

        Calls with the same `key` and input give the same batch, also from other processes and after a crash. If
        that one failed, expired or was cancelled, the next call creates another.

        Raises:
            UsageError: The input is not a file of requests, or the key has a batch of another input.
            TypeError: There is no such option.
        """
        client = self._client
        _check_options("a batch", options, BatchOptions)
        with ExitStack() as stack:
            path = await asyncio.to_thread(lambda: stack.enter_context(spooled(source)))
            sha256 = await asyncio.to_thread(sha256_of, path)
            metadata, request_key = dict(options.get("metadata", {})), uuid.uuid4().hex
            if key is not None:
                metadata |= {KEY: key, SHA256: sha256}
                found, ended = await self._of_key(key, sha256)
                if found is not None:
                    return AsyncBatch(client, self._console, found)
                request_key = f"{key}-{sha256[:16]}-{ended}"
            create: dict[str, Any] = {
                **options,
                "endpoint": options.get("endpoint") or endpoint_of(path, name_of(source)),
                "window": options.get("window") or (await client.limits()).usual_window,
                "metadata": metadata,
                "key": request_key,
            }
            batch = await self._create(path, create, sha256, key)
            return AsyncBatch(client, self._console, batch)

    async def run(
        self,
        source: str | os.PathLike[str],
        output: str | os.PathLike[str] | None = None,
        *,
        errors: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        parallel: int = PARALLEL,
        again: bool = False,
        **options: Unpack[BatchOptions],
    ) -> Run:
        """Run a file of any size to its end, and check the results against the receipt and the input.

        A file that exceeds one batch becomes several, `parallel` at a time. After a crash the same call resumes;
        so does `tidemill run` with the same paths.

        Args:
            source: JSONL with one request per line.
            output: File for the answers; by default `NAME.output.jsonl` beside the input.
            errors: File for the failed lines; by default `NAME.errors.jsonl` beside the output.
            overwrite: Whether existing files may be overwritten.
            parallel: Concurrent batches.
            again: Start over instead of resuming an interrupted call.
            options: See `BatchOptions`.

        Raises:
            UsageError: The input is faulty, or a file exists. If the service rejected lines, the text names them.
            TypeError: There is no such option.
        """
        _check_options("a batch", options, BatchOptions)
        path = Path(source)
        target = path.with_name(f"{path.stem}.output.jsonl") if output is None else Path(output)
        chosen = None if errors is None else Path(errors)
        sink = Sink(output=target, errors=chosen, force=overwrite, wording=LIBRARY)
        wanted = RunOptions(**_with_metadata(options), parallel=parallel, again=again)
        finished = await finish(self._console, self._client, path, sink, wanted)
        if (faults := rejection(finished.name, finished.results)) is not None:
            raise Rejected(faults)
        assert finished.sink.errors is not None
        return Run(output=target, errors=finished.sink.errors, batches=finished.results, receipt=finished.receipt)

    @_handing_over
    async def map(
        self,
        frame: Any,
        *,
        model: str,
        prompt: Text | None = None,
        system: Text | None = None,
        schema: Schema | None = None,
        repairs: int = 2,
        images: Sequence[str] = (),
        keep: Sequence[str] = (),
        fields: Mapping[str, Any] | None = None,
        **options: Unpack[TableOptions],
    ) -> Any:
        """Ask a model about each row of a table, and return a table of the same library with the answers.

        It adds the columns of `tidemill map`: the answer, typed by the schema, and `error`, `attempts`, tokens and
        cost. A row that fails has a text in `error`. The same call on the same table resumes an interrupted one.

        Args:
            frame: A table of pandas, polars or Arrow.
            model: The model.
            prompt: The question, a Jinja template over the columns of a row; a `Path` is a file with it.
            system: The system prompt.
            schema: JSON Schema of the answer, a Pydantic class, or the path of a file with the schema.
            repairs: Times to ask again if an answer does not fit the schema.
            images: Columns with pictures.
            keep: Columns of the table that the result keeps; by default, all.
            fields: Further fields of each request, like `temperature`.
            options: See `TableOptions`.

        Raises:
            UsageError: An argument is unusable, the extra `data` is missing, or the service rejected a batch.
            TypeError: There is no such option.
        """
        _check_options("a table", options, TableOptions)
        return await _frames().mapped(
            self._console,
            self._client,
            frame,
            keep,
            _with_metadata(options),
            model=model,
            prompt=prompt,
            system=system,
            schema=schema,
            images=images,
            repairs=repairs,
            more=fields or {},
        )

    @_handing_over
    async def embed(
        self,
        frame: Any,
        *,
        model: str,
        column: str | None = None,
        prompt: Text | None = None,
        keep: Sequence[str] = (),
        fields: Mapping[str, Any] | None = None,
        **options: Unpack[TableOptions],
    ) -> Any:
        """Embed a column of a table, and return a table of the same library with the vectors.

        Args:
            frame: A table of pandas, polars or Arrow.
            model: The model.
            column: The column with the text.
            prompt: The text, a Jinja template over the columns of a row, in place of a column.
            keep: Columns of the table that the result keeps; by default, all.
            fields: Further fields of each request, like `dimensions`.
            options: See `TableOptions`.

        Raises:
            UsageError: As for `map`.
            TypeError: There is no such option.
        """
        _check_options("a table", options, TableOptions)
        return await _frames().embedded(
            self._console,
            self._client,
            frame,
            keep,
            _with_metadata(options),
            model=model,
            column=column,
            prompt=prompt,
            more=fields or {},
        )

    async def batch(self, batch_id: str) -> "AsyncBatch":
        """Read a batch by its id."""
        found = await self._client.batch(batch_id)
        return AsyncBatch(self._client, self._console, found)

    async def batches(self, *, limit: int = sys.maxsize, **filters: str) -> AsyncGenerator["AsyncBatch", None]:
        """Read up to `limit` batches, the newest first; filters are those of the API, like `status="failed"`."""
        async for found in self._client.pages(BATCHES, filters, limit=limit):
            yield AsyncBatch(self._client, self._console, found.read(Batch))

    async def _of_key(self, key: str, sha256: str) -> tuple[Batch | None, int]:
        """The key's batch that completed or still may, and the number of its batches that ended otherwise."""
        ended = 0
        async for found in self._client.pages(BATCHES, {f"metadata[{KEY}]": key}, limit=ENDED_MAX):
            batch = found.read(Batch)
            if (batch.metadata or {}).get(SHA256) != sha256:
                raise UsageError(f"the key {key!r} has a batch of another input, {batch.id}; use another key")
            if batch.status is Status.COMPLETED or not batch.status.is_terminal:
                return batch, ended
            ended += 1
        return None, ended

    async def _create(self, path: Path, create: dict[str, Any], sha256: str, key: str | None) -> Batch:
        file_id = await self._client.retrying(lambda: upload(self._client, path, lambda _: None))
        try:
            return await self._client.create(file_id, **create)
        except Refused as error:
            if key is None or error.status != HTTPStatus.CONFLICT:
                raise
            # Another process has created the batch of this key first.
            return await self._awaited(key, sha256, error)

    async def _awaited(self, key: str, sha256: str, refusal: Refused) -> Batch:
        until = asyncio.get_running_loop().time() + FOUND_SECONDS_MAX
        while asyncio.get_running_loop().time() < until:
            found, _ = await self._of_key(key, sha256)
            if found is not None:
                return found
            await asyncio.sleep(POLL_SECONDS_MAX)
        raise refusal


def _frames() -> ModuleType:
    """The module for tables, which needs the extra `data`."""
    try:
        check_libraries()
    except TableError as error:
        raise UsageError(str(error)) from error
    return importlib.import_module("tidemill.client.library.frames")


def _check_options(what: str, options: Mapping[str, Any], kind: type) -> None:
    """Check that options exist: the service ignores fields that it does not know."""
    known = kind.__annotations__
    if unknown := [name for name in options if name not in known]:
        raise TypeError(f"{what} has no option {', '.join(unknown)}; its options are {', '.join(known)}")


def _with_metadata(options: BatchOptions | TableOptions) -> dict[str, Any]:
    return {**options, "metadata": dict(options.get("metadata", {}))}
