"""The commands `begin`, `append` and `seal`: a batch whose requests come in pieces, and run as they come.

The service numbers appends from 1, and drops one that it has. So a file is always sent under the numbers of its
first try, which the client saves in the user's state directory before it sends: the same command after a crash, or
once more, adds no line twice. One program appends to a batch at a time.
"""

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import msgspec

from tidemill.client.errors import Exit, OtherService, Refused, Unreachable, UsageError
from tidemill.client.files import input_lines, sha256_of
from tidemill.client.http.client import BATCHES, Bounds, Client
from tidemill.client.progress import display
from tidemill.client.runs.job import readable
from tidemill.client.runs.journal import locked_folder
from tidemill.client.runs.outcome import SHORT, name_of
from tidemill.client.runs.plan import Shard, cut
from tidemill.schemas import UNREADABLE
from tidemill.schemas.bounds import INLINE_REQUESTS_MAX, RECORD_BYTES_EXTRA, RECORD_BYTES_MAX
from tidemill.schemas.resources.batch import Batch
from tidemill.storage.atomic_file import replacing
from tidemill.terminal import Console, say, show_json
from tidemill.wording import counted

LINE_EXTRA: Final = 64
"""Bytes that the service adds to a line, besides the endpoint."""
FILES_MAX: Final = 10_000
"""Files of a batch that the state directory remembers."""


class _File(msgspec.Struct, frozen=True):
    """A file that was appended, or begun."""

    sha256: str
    first: int
    """The number of its first append."""
    appends: int
    requests: int
    is_done: bool = False

    @property
    def last(self) -> int:
        """The number of its last append."""
        return self.first + self.appends - 1


_files: Final = msgspec.json.Decoder(list[_File])


class _Memory:
    """Files that this user appended to a batch, in order; the newest one may be unfinished."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "appended.json"
        try:
            self._found = _files.decode(self._path.read_bytes())
        except FileNotFoundError:
            self._found = []
        except UNREADABLE as error:
            reason = f"{self._path} cannot be read, and it says which files were appended; nothing was sent."
            raise UsageError(f"{reason} Delete it to append whole files.") from error

    def known(self, sha256: str) -> _File | None:
        """A file of this content, if it was appended or begun."""
        return next((each for each in self._found if each.sha256 == sha256), None)

    @property
    def last(self) -> int:
        """The number of the last append that is known; 0 without one."""
        return self._found[-1].last if self._found else 0

    @property
    def is_unfinished(self) -> bool:
        """Whether the newest file was begun and not finished."""
        return bool(self._found) and not self._found[-1].is_done

    def begin(self, file: _File) -> None:
        """Note a file as the newest one."""
        self._save([*self._found, file])

    def finish(self, file: _File, sent: _File) -> None:
        """Record how much of a file the service has: all of it, or the part before an append that it refused."""
        others = [each for each in self._found if each.sha256 != file.sha256]
        self._save([*others, msgspec.structs.replace(sent, is_done=True)] if sent.appends else others)

    def _save(self, found: list[_File]) -> None:
        """Save the newest files; they are on disk on return."""
        self._found = found[-FILES_MAX:]
        with replacing(self._path) as target:
            target.write(msgspec.json.encode(self._found))


async def begin(client: Client, fields: dict[str, Any], *, key: str | None, as_json: bool) -> Exit:
    """Create an open batch, and print its id; requests with the same key create one batch."""
    body = {name: value for name, value in fields.items() if value} | {"open": True}
    if "completion_window" not in body:
        body["completion_window"] = (await client.limits()).usual_window
    found = await client.make(BATCHES, body, key=key or uuid.uuid4().hex)
    _show(found, str(found["id"]), as_json=as_json)
    return Exit.OK


async def append(console: Console, client: Client, batch_id: str, source: Path, *, as_json: bool) -> Exit:
    """Append the lines of a file, or of stdin (`-`); the log has them when this returns.

    Raises:
        UsageError: The file is faulty, another file is unfinished, another program appends, or the note of earlier
            files is damaged.
        Unreachable: The service went away; the same command goes on.
        Refused: The service rejected an append.
    """
    batch = await client.batch(await client.find(batch_id))
    with readable(source) as (path, name), _memory(client, batch.id) as memory:
        shown = source if path == source else name
        bounds, endpoint = _bounds(batch.endpoint), batch.endpoint
        shards = await asyncio.to_thread(cut, path, bounds, endpoint=endpoint, name=shown, done="appended")
        lines = sum(shard.lines for shard in shards)
        if not lines:
            raise UsageError(f"{name} has no lines")
        sha256 = await asyncio.to_thread(sha256_of, path)
        known = memory.known(sha256)
        if is_new := known is None:
            if memory.is_unfinished:
                raise UsageError("another file is appended in part: append that one again first")
            first = 1 + max(memory.last, batch.tidemill.sequence or 0)
            known = _File(sha256=sha256, first=first, appends=len(shards), requests=lines)
            memory.begin(known)
        if known.is_done:
            console.print("These requests were appended before; nothing was sent.")
        else:
            sent = await _send(console, client, batch, path, shards, file=known, is_new=is_new)
            memory.finish(known, sent)
            known = sent
    found = {"object": "batch.append", "batch_id": batch.id, "sequence": known.last, "requests": known.requests}
    _show(found, f"{name_of(batch)}: {counted(known.requests, 'request')} appended", as_json=as_json)
    return Exit.OK if known.requests == lines else Exit.USAGE


async def seal(console: Console, client: Client, batch_id: str, *, as_json: bool) -> Exit:
    """Seal a batch: it ends with its last request. A sealed one stays as it is.

    Raises:
        UsageError: A file is appended in part, or the note of the files is damaged.
        Refused: The batch was not created open, or another program appends to it.
    """
    batch = await client.batch(await client.find(batch_id))
    with _memory(client, batch.id) as memory:
        if memory.is_unfinished:
            raise UsageError("a file is appended in part: append it again before the seal")
        last = max(memory.last, batch.tidemill.sequence or 0)
        found = await client.send_retrying("POST", f"{BATCHES}/{batch.id}/seal", json={"sequence": last})
    short = batch.id[-SHORT:]
    console.print(f"To download its results: `tidemill watch {short} -o out.jsonl`")
    _show(found, f"{name_of(batch)} is sealed.", as_json=as_json)
    return Exit.OK


def _show(found: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        show_json(found)
    else:
        say(text)


def _bounds(endpoint: str) -> Bounds:
    """The bounds of one append, which is one record of the log."""
    most = RECORD_BYTES_MAX - RECORD_BYTES_EXTRA - INLINE_REQUESTS_MAX * (LINE_EXTRA + len(endpoint))
    return Bounds(lines_max=INLINE_REQUESTS_MAX, bytes_max=most, line_bytes_max=most)


@contextmanager
def _memory(client: Client, batch_id: str) -> Iterator[_Memory]:
    """The memory of a batch, locked."""
    with locked_folder(f"append {client.base_url} {batch_id}", f"`tidemill append` to {batch_id}") as folder:
        yield _Memory(folder)


async def _send(
    console: Console, client: Client, batch: Batch, path: Path, shards: list[Shard], *, file: _File, is_new: bool
) -> _File:
    """Send the appends of a file; returns how much was appended: all of it unless the service refuses one."""
    with display(console) as progress:
        progress.transfer("append", shards[-1].end)
        for sent, shard in enumerate(shards):
            body = await asyncio.to_thread(_body, path, shard, file.first + sent)
            try:
                await _append(client, batch, body, is_new=is_new)
            except Refused as error:
                console.print(f"tidemill: from line {shard.line} on, nothing is appended: {error}", style="red")
                done = sum(each.lines for each in shards[:sent])
                return msgspec.structs.replace(file, appends=sent, requests=done, sha256=f"{file.sha256} in part")
            except (asyncio.CancelledError, Unreachable, OtherService):
                console.print("The same command goes on with the append.")
                raise
            progress.moved(shard.end - shard.start)
    return file


async def _append(client: Client, batch: Batch, body: bytes, *, is_new: bool) -> None:
    """Send an append until it is answered.

    Raises:
        Refused: The service rejected it, or, if it `is_new`, already has an append with this number.
    """
    tries, path = 0, f"{BATCHES}/{batch.id}/requests"

    async def attempt() -> dict[str, Any]:
        nonlocal tries
        tries += 1
        return await client.send("POST", path, data=body, headers={"content-type": "application/json"})

    answer = await client.retrying(attempt)
    if is_new and tries == 1 and answer.get("repeated"):
        raise Refused(
            HTTPStatus.CONFLICT, "another program appends to the batch; append this again after it", None
        )


def _body(path: Path, shard: Shard, sequence: int) -> bytes:
    lines = input_lines(path, span=(shard.start, shard.end))
    return b'{"sequence":%d,"requests":[%b]}' % (sequence, b",".join(line.data or b"" for line in lines))
