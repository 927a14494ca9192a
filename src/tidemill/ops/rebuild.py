"""`tidemill rebuild`: rebuilds result files from the log and compares them with the published ones."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Final

from tidemill.configuration.security import Kafka
from tidemill.configuration.settings import Settings
from tidemill.kafka import history
from tidemill.kafka.history import FIRST, Reader
from tidemill.kafka.producer import partition_of
from tidemill.ops import Say
from tidemill.results.files.overlay_store import OverlayStore, RebuildError
from tidemill.results.files.rebuild import Rebuild, Rebuilt, same
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.part import file_key, index_key
from tidemill.schemas.resources.batch import Batch
from tidemill.sealing.key_manager import wrapper
from tidemill.sealing.records import open_outcome
from tidemill.sealing.store import SealedStore
from tidemill.sealing.vault import NoKey, Vault
from tidemill.storage.address import open_store
from tidemill.wording import counted

BATCHES_MAX: Final = 100
"""Batches of one command; each costs a read of its whole partition of `outcomes`."""
SHOWN_MAX: Final = 3


async def rebuild(settings: Settings, kafka: Kafka, names: Sequence[str], say: Say, *, write: bool) -> bool:
    """Rebuild the files of batches, named by their ids or the ends of these.

    With `write` it replaces missing or damaged files of a batch whose receipt is the published one. Returns
    whether every rebuilt receipt is the published one, and the store has the files of all receipts at the end.

    Raises:
        LogUnavailable: The broker does not answer.
        OSError: The store failed.
    """
    is_equal = True
    async with history.reading(kafka) as reader:
        known = await _published(reader, names)
        files = await _files(reader, known.values())
        vault = await vault_of(reader, settings)
        store = SealedStore(open_store(settings.store_url), vault)
        try:
            for name in names:
                try:
                    batch = _known(known, vault, name)
                    with tempfile.TemporaryDirectory(prefix="tidemill-rebuild-") as folder:
                        work = Rebuild(batch, OverlayStore(Path(folder), store), bill_copies=settings.bill_copies)
                        is_equal &= await _one(reader, work, files, say, vault=vault, write=write)
                except RebuildError as error:
                    say(str(error))
                    is_equal = False
        finally:
            await store.close()
    return is_equal


async def _one(
    reader: Reader, work: Rebuild, files: dict[str, str], say: Say, *, vault: Vault, write: bool
) -> bool:
    batch = work.batch
    number = partition_of(batch.id, len(reader.partitions(topics.OUTCOMES.name)) or 1)
    async with aclosing(reader.records(topics.OUTCOMES.name, {number: FIRST})) as records:
        async for record in records:
            headers, value = record.headers, record.value or b""
            with suppress(NoKey, DecodeError):
                headers, value = await open_outcome(vault, headers, value)
            await work.add(headers, value)
            if work.is_complete:
                break
    rebuilt = await work.finish()
    say(f"{batch.id}: {_summary(rebuilt)}")
    return rebuilt.is_equal and await has_files(work.store, batch, rebuilt, files, say, write=write)


async def has_files(
    overlay: OverlayStore, batch: Batch, rebuilt: Rebuilt, files: dict[str, str], say: Say, *, write: bool
) -> bool:
    """Whether the files in the store are the rebuilt ones; with `write` it replaces those that differ."""
    is_intact = True
    for kind, _ in rebuilt.receipt.files:
        file_id = ids.derived_file_id(batch.id, kind)
        if file_id not in files:
            say(f"  {file_id}: was deleted, and stays deleted")
            continue
        new, key = file_key(file_id), files[file_id]
        for above, below in ((new, key), (index_key(new), index_key(key))):
            if await same(overlay, above, below):
                say(f"  {below}: intact")
            elif write:
                await overlay.below.write(below, overlay.read(above))
                say(f"  {below}: was missing or damaged; replaced")
            else:
                say(f"  {below}: is missing or damaged; --write replaces it")
                is_intact = False
    return is_intact


async def _published(reader: Reader, names: Sequence[str]) -> dict[str, Batch]:
    found = {}
    async for record in reader.records(topics.BATCHES.name):
        key = (record.key or b"").decode(errors="replace")
        if record.value is not None and any(ids.names_batch(name, key) for name in names):
            try:
                found[key] = codec.decode_batch(record.value).batch
            except DecodeError:
                found.pop(key, None)
    return found


def _known(batches: Mapping[str, Batch], vault: Vault, name: str) -> Batch:
    """The batch that a name stands for.

    Raises:
        RebuildError: It is deleted, or no batch or several batches match.
    """
    meant = [batch_id for batch_id in batches if ids.names_batch(name, batch_id)] or [name]
    if len(meant) > 1:
        raise RebuildError(f"{name}: {len(meant)} batches match: {', '.join(sorted(meant)[:SHOWN_MAX])}")
    batch_id = meant[0]
    if vault.is_erased(batch_id):
        raise RebuildError(f"{batch_id}: the batch is deleted")
    if (batch := batches.get(batch_id)) is None:
        raise RebuildError(f"{batch_id}: no such batch")
    return batch


async def vault_of(reader: Reader, settings: Settings) -> Vault:
    """The encryption keys of batches, read-only."""
    vault = Vault(None, wrapper=wrapper(settings))
    async for record in reader.records(topics.SECRETS.name):
        vault.apply((record.key or b"").decode(errors="replace"), record.value, record.offset)
    return vault


async def _files(reader: Reader, batches: Iterable[Batch]) -> dict[str, str]:
    """Store keys of the files of the batches, by file id; deleted files are left out."""
    receipts = ((batch.id, batch.tidemill.receipt) for batch in batches)
    wanted = {
        ids.derived_file_id(name, kind) for name, receipt in receipts if receipt for kind, _ in receipt.files
    }
    found: dict[str, str] = {}
    async for record in reader.records(topics.FILES.name):
        key = (record.key or b"").decode(errors="replace")
        if key in wanted:
            found.pop(key, None)
            if record.value is not None:
                with suppress(DecodeError):
                    found[key] = codec.decode_file(record.value).key
    return found


def _summary(rebuilt: Rebuilt) -> str:
    files = (("output", rebuilt.receipt.output), ("errors", rebuilt.receipt.errors))
    parts = [
        f"{name} {counted(file.lines, 'line')}, {counted(file.bytes, 'byte')}, sha256 {file.sha256[:16]}…"
        for name, file in files
        if file
    ]
    equal = "equal to the published receipt" if rebuilt.is_equal else "NOT equal to the published receipt"
    odd = f"; unreadable: {counted(rebuilt.unreadable, 'record')}" if rebuilt.unreadable else ""
    return f"{', '.join(parts) or 'no lines'}: {equal}{odd}"
