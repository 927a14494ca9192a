"""Copies the files of an ended batch to the bucket that it names, before the batch shows its end.

The folder of a batch gets its files, and `receipt.json` last, so a reader that sees the receipt sees all. Every
step may be repeated after a crash: a file that is there already, by the digest in its metadata, is left alone.
"""

import asyncio
import functools
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final

import orjson

from tidemill import metrics
from tidemill.results.resources import Owner, Resources
from tidemill.results.state.active_batch import ActiveBatch
from tidemill.results.state.reducer import State
from tidemill.retrying import pause_seconds
from tidemill.schemas import buckets, ids
from tidemill.schemas.bounds import TEXT_CHARS_MAX
from tidemill.schemas.buckets import Address, OutputCopy
from tidemill.schemas.log.messages import Compacted
from tidemill.schemas.log.part import file_key
from tidemill.schemas.ports import NotFound, once
from tidemill.schemas.resources.batch import Batch, FileReceipt
from tidemill.schemas.resources.waiting import Reason
from tidemill.storage.buckets import NotAllowed, OwnStoreError, own_chunks, reason
from tidemill.storage.s3_errors import Refused

SECONDS_MAX: Final = 3600.0
"""How long a process tries to reach a server that does not answer."""
TRY_SECONDS_MAX: Final = 300.0
"""An attempt and its pause count as this at most: a machine that slept has not tried meanwhile."""
REFUSALS_MAX: Final = 5
"""How often in a row the server may refuse."""
RECEIPT: Final = "receipt.json"

Waits = Callable[[Reason, str], None]
"""Called with the reason why a batch cannot end yet, and a sentence; the caller tries again anyway."""

log = logging.getLogger(__name__)


class BucketCopier:
    """Copies the files of a partition's batches."""

    def __init__(self, resources: Resources, owner: Owner) -> None:
        self._resources = resources
        self._owner = owner

    async def copy(self, active: ActiveBatch, state: State, fact: Compacted, waits: Waits) -> Compacted | None:
        """Copy the files of a batch whose user asked for it, and note the outcome in its fact.

        Returns:
            The fact; None if the batch has ended meanwhile.
        """
        batch = state.batch
        assert batch is not None
        if (uri := batch.tidemill.output_uri) is None:
            return fact
        folder = buckets.parse_folder(uri).child(batch.id)
        why = await self._copied(active, state, fact, folder, waits)
        if active.state.is_over:
            return None
        metrics.TRANSFERS.labels("written", "done" if why is None else "failed").inc()
        if why is None:
            done = OutputCopy(status="done", uri=str(folder), files=len(fact.receipt.files))
        else:
            log.error("%s: its files are not copied to its bucket: %s", batch.id, why)
            done = OutputCopy(status="failed", uri=str(folder), reason=why[:TEXT_CHARS_MAX])
        return fact.model_copy(update={"output_copy": done, "at": int(self._resources.clock())})

    async def _copied(
        self, active: ActiveBatch, state: State, fact: Compacted, folder: Address, waits: Waits
    ) -> str | None:
        """Copy, and retry until that works; returns why it failed for good, or None."""
        assert state.batch is not None
        failures, refusals, tried_seconds, began_at = 0, 0, 0.0, self._resources.monotonic()
        while not active.state.is_over:
            try:
                await self._attempt(state, fact, folder)
                break
            except NotAllowed as error:
                return reason(error)
            except ImportError:
                return "the stage results has no pyarrow; `pip install 'tidemill[data]'` there installs it"
            except (Refused, NotFound) as error:
                kind, why, refusals = Reason.BUCKET, reason(error), refusals + 1
                if refusals >= REFUSALS_MAX:
                    return why
            except OSError as error:
                kind = Reason.STORE if isinstance(error, OwnStoreError) else Reason.BUCKET
                why, refusals, now = reason(error), 0, self._resources.monotonic()
                tried_seconds += min(now - began_at, TRY_SECONDS_MAX)
                began_at = now
                if tried_seconds >= SECONDS_MAX:
                    return why
            except Exception as error:
                # The files are in the store: a failed copy must not keep the batch from ending.
                log.exception("%s: the copy failed", state.id)
                return f"it failed ({type(error).__name__}); the log of results says where"
            wait = pause_seconds(failures)
            failures += 1
            log.warning("%s is not copied to its bucket: %s; next try in %.1f s", state.id, why, wait)
            waits(kind, f"The files of the batch cannot be copied to its bucket: {why}.")
            await asyncio.sleep(wait)
        return None

    async def _attempt(self, state: State, fact: Compacted, folder: Address) -> None:
        assert state.batch is not None
        suffix = state.batch.tidemill.output_format or "jsonl"
        named = [(f"{kind}.{suffix}", kind, found) for kind, found in fact.receipt.files]
        for name, kind, found in named:
            key = file_key(ids.derived_file_id(state.id, kind), fact.writer)
            read = functools.partial(self._content, state.batch, key)
            await self._write(state.project, folder.child(name), read, found.sha256)
        content = _receipt(state, fact, {name: found for name, _, found in named})
        digest = hashlib.sha256(content).hexdigest()
        await self._write(state.project, folder.child(RECEIPT), lambda: once(content), digest)

    async def _write(
        self, project: str, address: Address, read: Callable[[], AsyncIterator[bytes]], sha256: str
    ) -> None:
        async with self._resources.buckets.transfer(project, address, writes=True) as store:
            await self._owner.confirm()
            if not await store.has(address.key, sha256):
                await store.put(address.key, self._while_owner(read()), sha256)

    async def _while_owner(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The chunks; a process that no longer owns the partition stops before the object is complete."""
        async for chunk in chunks:
            yield chunk
            metrics.TRANSFER_BYTES.labels("written").inc(len(chunk))
        await self._owner.confirm()

    def _content(self, batch: Batch, key: str) -> AsyncIterator[bytes]:
        chunks = own_chunks(self._resources.store, key)
        if batch.tidemill.output_format != "parquet":
            return chunks
        # The library comes with an optional extra, and takes a second to import.
        from tidemill.tables.result_lines import converted  # noqa: PLC0415

        return converted(chunks)


def _receipt(state: State, fact: Compacted, files: dict[str, FileReceipt]) -> bytes:
    """The content of `receipt.json`; the digest is that of the lines, also if the file is Parquet."""
    receipt = fact.receipt
    shown = {
        "batch_id": state.id,
        "status": state.ending,
        "lines": receipt.lines,
        "missing": receipt.missing,
        "double": receipt.double,
        "files": [
            {"name": name, "lines": found.lines, "jsonl_bytes": found.bytes, "jsonl_sha256": found.sha256}
            for name, found in files.items()
        ],
    }
    return orjson.dumps(shown, option=orjson.OPT_INDENT_2) + b"\n"
