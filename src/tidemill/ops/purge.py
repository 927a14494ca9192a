"""`tidemill purge`: searches the log and the store for readable remains of deleted batches.

It only reads: `tidemill delete` deletes, through the API.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill.configuration.security import Kafka
from tidemill.configuration.settings import Settings
from tidemill.kafka import history
from tidemill.kafka.admin import topic_configs
from tidemill.kafka.history import Reader
from tidemill.ops import OperatorError, Say
from tidemill.ops.rebuild import vault_of
from tidemill.schemas import ids
from tidemill.schemas.bounds import OUTPUTS_MAX
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.messages import Erasure
from tidemill.schemas.log.part import LARGE_PREFIX, PARTS_PREFIX, file_key, index_key
from tidemill.schemas.resources.file import file_kind
from tidemill.sealing.records import open_outcome, open_request
from tidemill.sealing.vault import NoKey, Vault
from tidemill.storage.address import open_store
from tidemill.wording import counted

DELETED_SECONDS_MAX: Final = 30.0
"""Time for the stage results to remove the objects of a batch."""
KINDS: Final = (
    file_kind(failed=False),
    file_kind(failed=True),
    *(file_kind(failed=False, number=number) for number in range(1, OUTPUTS_MAX + 1)),
)
POLL_SECONDS: Final = 0.5


@dataclass
class Found:
    """Remains of a batch."""

    sealed: int = 0
    """Records that cannot be decrypted."""
    readable: dict[str, int] = field(default_factory=dict)
    """Readable records by topic: in the clear, or with an existing key."""
    newest_ms: dict[str, int] = field(default_factory=dict)
    """Time of the newest readable record by topic (Unix milliseconds)."""
    wrapped: int = 0
    """Wrapped keys that Kafka has not compacted away yet."""
    objects: list[str] = field(default_factory=list)
    input_file_id: str = ""
    input_objects: list[str] = field(default_factory=list)

    @property
    def is_gone(self) -> bool:
        """Whether nothing of the batch is readable."""
        return not (self.readable or self.wrapped or self.objects or self.input_objects)


async def purge(settings: Settings, kafka: Kafka, say: Say, *, batch_id: str = "", project: str = "") -> bool:
    """Report the remains of a deleted batch, or of all deleted batches of a project.

    Returns:
        Whether nothing of them is readable.

    Raises:
        OperatorError: The log has no deletion of such a batch.
        LogUnavailable: The broker does not answer.
        OSError: The store failed.
    """
    async with history.reading(kafka) as reader:
        vault, found = await vault_of(reader, settings), await _deleted(reader, batch_id, project)
        for deleted, what in found.items():
            what.objects, what.input_objects = await _objects(settings, deleted, what.input_file_id)
        for topic in sorted(reader.topics()):
            if topics.is_of_requests(topic) or topic in {topics.OUTCOMES.name, topics.DEAD.name}:
                async for record in reader.records(topic):
                    await _count(found, vault, topic, record)
    for deleted, what in found.items():
        await _report(what, kafka, deleted, say)
    return all(what.is_gone for what in found.values())


async def _deleted(reader: Reader, batch_id: str, project: str) -> dict[str, Found]:
    """The deleted batches that match, with the number of wrapped keys in the log."""
    found: dict[str, Found] = {}
    wrapped: Counter[str] = Counter()
    async for record in reader.records(topics.SECRETS.name):
        of, slash, _ = (record.key or b"").decode(errors="replace").partition("/")
        if record.value is None:
            continue
        if slash:
            wrapped[of] += 1
            continue
        erasure = _erasure(record.value)
        if ids.names_batch(batch_id, of) or (project and erasure is not None and erasure.project == project):
            found[of] = Found(input_file_id=erasure.input_file_id if erasure is not None else "")
    if not found:
        which = f"a batch of {project}" if project else batch_id
        raise OperatorError(f"the log has no deletion of {which}: run `tidemill delete` first")
    for of, what in found.items():
        what.wrapped = wrapped[of]
    return found


def _erasure(value: bytes) -> Erasure | None:
    try:
        return codec.decode_erasure(value)
    except DecodeError:
        return None


async def _objects(settings: Settings, batch_id: str, input_file_id: str) -> tuple[list[str], list[str]]:
    """Objects of the batch, after waiting for the stage results to remove them, and those of its input."""
    # Prefixes, since the name of the writer follows the id.
    files = [file_key(ids.derived_file_id(batch_id, kind)) for kind in KINDS]
    prefixes = (f"{PARTS_PREFIX}{batch_id}/", f"{LARGE_PREFIX}{batch_id}/", *files, *map(index_key, files))
    until = time.monotonic() + DELETED_SECONDS_MAX
    store = open_store(settings.store_url)
    try:
        while True:
            found = [key for prefix in prefixes async for key in store.keys(prefix)]
            if not found or time.monotonic() > until:
                source = file_key(input_file_id)
                return found, [key async for key in store.keys(source)] if input_file_id else []
            await asyncio.sleep(POLL_SECONDS)
    finally:
        await store.close()


async def _count(batches: Mapping[str, Found], vault: Vault, topic: str, record: Any) -> None:
    """Count a record of one of the batches that holds lines."""
    headers = {name: value for name, value in record.headers if value is not None}
    found = batches.get(headers.get(codec.BATCH, b"").decode(errors="replace"))
    if found is None or not record.value:
        return
    try:
        if topics.is_of_requests(topic):
            await open_request(vault, codec.request_head(record.headers), record.value)
        elif topic == topics.OUTCOMES.name:
            await open_outcome(vault, record.headers, record.value)
        is_sealed = topic == topics.DEAD.name and codec.KEY in headers
    except (NoKey, DecodeError):
        is_sealed = True
    if is_sealed:
        found.sealed += 1
        return
    found.readable[topic] = found.readable.get(topic, 0) + 1
    found.newest_ms[topic] = max(found.newest_ms.get(topic, 0), record.timestamp)


async def _report(found: Found, kafka: Kafka, batch_id: str, say: Say) -> None:
    say(f"records that cannot be decrypted: {found.sealed}")
    if found.wrapped:
        say(f"wrapped keys that Kafka has not compacted away yet: {found.wrapped}; check again in an hour")
    configs = await topic_configs(kafka, found.readable) if found.readable else {}
    for topic, count in found.readable.items():
        kept_ms = int(configs.get(topic, {}).get("retention.ms", -1))
        until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime((found.newest_ms[topic] + kept_ms) / 1000))
        deleted = until if kept_ms >= 0 else "never"
        say(f"{topic}: {counted(count, 'readable record')}; Kafka deletes the last one: {deleted}")
    for key in found.objects:
        say(f"{key}: still in the store")
    for key in found.input_objects:
        say(
            f"{key}: the input, still in the store; to delete it: `tidemill delete --input {batch_id}`, unless "
            "another batch has it; a deletion under way takes half a minute"
        )
    say(f"{batch_id}: " + ("nothing of it is readable" if found.is_gone else "parts of it are readable"))
