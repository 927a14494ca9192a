"""`tidemill doctor`: looks at all that Tidemill needs, and says how to mend what is not as it should be."""

import asyncio
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tidemill.configuration import signing_keys
from tidemill.configuration.security import Kafka
from tidemill.configuration.servers import Backend, Model
from tidemill.configuration.settings import Settings, SettingsError
from tidemill.kafka import history
from tidemill.kafka.admin import TopicError, topic_configs, wanted
from tidemill.kafka.connection import LogUnavailable, reachable
from tidemill.ops import findings, server_probe
from tidemill.ops.findings import Finding
from tidemill.runtime import preflight, run_file
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.ports import Store
from tidemill.schemas.resources.waiting import Waits
from tidemill.schemas.signing import SignatureError
from tidemill.storage.address import open_store

CHECK_SECONDS_MAX: Final = 20.0
"""For each thing that is looked at."""
BACKENDS_AT_ONCE_MAX: Final = 8
PROBE_BYTES: Final = 64

Say = Callable[[str], None]


async def examine(settings: Settings, where: Kafka | None, say: Say) -> bool:
    """Look at everything, and print a line of each.

    Args:
        settings: All settings.
        where: The broker; None where none is set and none runs here.
        say: Takes a line.

    Returns:
        Whether nothing fails; warnings are well enough.
    """
    found: list[Finding] = []
    for check in _checks(settings, where):
        try:
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                fresh = await check()
        except TimeoutError:
            fresh = [findings.fail("check", f"no answer in {CHECK_SECONDS_MAX:.0f} s", "look at what it asks")]
        for finding in fresh:
            say(shown(finding))
        found += fresh
        if fresh and fresh[0].what == "kafka" and not findings.is_well(fresh):
            where = None
    counts = {verdict: sum(finding.verdict is verdict for finding in found) for verdict in findings.Verdict}
    say(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return findings.is_well(found)


def shown(finding: Finding) -> str:
    """A finding as a line, or two where there is something to do; an arrow in ASCII, for every terminal."""
    mend = f"\n      -> {finding.mend}" if finding.mend else ""
    return f"{finding.verdict:<5} {finding.what}: {finding.text}{mend}"


def _checks(settings: Settings, where: Kafka | None) -> list[Callable[[], Awaitable[list[Finding]]]]:
    return [
        lambda: _settings(settings),
        lambda: _broker(where),
        lambda: _topics(settings, where),
        lambda: _keys(settings, where),
        lambda: _clock(where),
        lambda: _batches(where),
        lambda: _store(settings),
        lambda: _backends(settings),
        lambda: _disk(settings),
    ]


async def _settings(settings: Settings) -> list[Finding]:
    """What would stop or mislead a start: keys that are not set, an address that cannot be listened on."""
    found = [findings.fail(lack.setting, lack.text, lack.mend) for lack in preflight.keys(settings, os.environ)]
    found += [
        findings.warn(lack.setting, lack.text, lack.mend) for lack in preflight.misspelt(settings, os.environ)
    ]
    # An external Kafka may have an api on another machine; what runs here holds its port itself.
    if settings.kafka is None and run_file.read(settings.data) is None and (why := preflight.address(settings)):
        text, _, mend = why.partition("; ")
        found.append(findings.fail("address", text, mend))
    return found or [findings.ok("settings", "can be used here")]


async def _broker(where: Kafka | None) -> list[Finding]:
    if where is None:
        return [findings.fail("kafka", "none is set, and no `tidemill up` runs on this folder",
                              "start `tidemill up`, or set TIDEMILL_KAFKA")]  # fmt: skip
    try:
        await reachable(where)
    except Exception as error:  # noqa: BLE001  whatever it is, it does not answer
        return [findings.fail("kafka", f"{where} does not answer ({type(error).__name__})",
                              "check the address, its security settings, and that it runs")]  # fmt: skip
    return [findings.ok("kafka", f"{where} answers")]


async def _topics(settings: Settings, where: Kafka | None) -> list[Finding]:
    if where is None:
        return []
    rows = wanted(settings.models)
    try:
        configs = await topic_configs(where, [row.name for row in rows])
        async with history.reading(where) as reader:
            partitions = {row.name: len(reader.partitions(row.name)) for row in rows}
    except (TopicError, LogUnavailable) as error:
        return [findings.fail("topics", str(error), "see kafka above")]
    judged = [
        findings.topic(
            row,
            partitions=partitions[row.name],
            together=partitions[topics.OUTCOMES.name],
            configs=configs.get(row.name, {}),
            replication=settings.replication,
        )
        for row in rows
    ]
    wrong = [finding for finding in judged if finding is not None]
    return wrong or [findings.ok("topics", f"all {len(rows)} are as the table says")]


async def _keys(settings: Settings, where: Kafka | None) -> list[Finding]:
    """Whether the api has signed every record of keys."""
    if where is None:
        return []
    try:
        verifier = signing_keys.verifier(signing_keys.with_kept(settings))
    except SettingsError as error:
        return [findings.warn("keys", f"cannot be checked here ({error})", "set it as ingest has it")]
    count, refused = 0, []
    try:
        async with history.reading(where) as reader:
            async for record in reader.records(topics.KEYS.name):
                count += 1
                try:
                    verifier.key_record((record.key or b"").decode(errors="replace"), record.value)
                except SignatureError:
                    refused.append(record.offset)
    except LogUnavailable as error:
        return [findings.fail("keys", str(error), "see kafka above")]
    return [findings.keys(count, refused)]


async def _clock(where: Kafka | None) -> list[Finding]:
    """Kafka stamps a record with its producer's time, so the newest one must not be of the future."""
    if where is None:
        return []
    try:
        async with history.reading(where) as reader:
            at = await reader.newest(topics.BATCHES.name)
    except LogUnavailable as error:
        return [findings.fail("clock", str(error), "see kafka above")]
    return [findings.clock(None if at is None else at - time.time())]


async def _batches(where: Kafka | None) -> list[Finding]:
    """What batches wait for, as their latest records say."""
    if where is None:
        return []
    count = 0
    stalled: dict[str, Waits] = {}
    try:
        async with history.reading(where) as reader:
            async for record in reader.records(topics.BATCHES.name):
                count += 1
                key = (record.key or b"").decode(errors="replace")
                stalled.pop(key, None)
                with suppress(DecodeError):
                    batch = codec.decode_batch(record.value).batch if record.value is not None else None
                    if batch is not None and not batch.status.is_terminal and batch.tidemill.waiting:
                        stalled[key] = batch.tidemill.waiting
    except LogUnavailable as error:
        return [findings.fail("batches", str(error), "see kafka above")]
    return findings.stalled(stalled) if count else []


async def _store(settings: Settings) -> list[Finding]:
    key, content = f"health/doctor-{secrets.token_hex(8)}", secrets.token_bytes(PROBE_BYTES)
    kind = urlsplit(settings.store_url).scheme
    mend = (
        "check that the folder can be written" if kind == "file" else "check the bucket, its keys and its address"
    )
    store: Store | None = None
    try:
        store = open_store(settings.store_url)
        await store.write(key, _once(content))
        read = b"".join([chunk async for chunk in store.read(key)])
        await store.delete(key)
    except Exception as error:  # noqa: BLE001  whatever it is, the store is not well
        return [findings.fail("store", f"{settings.store_url}: {type(error).__name__}", mend)]
    finally:
        if store is not None:
            await store.close()
    if read != content:
        return [findings.fail("store", f"{settings.store_url} gives back something else than was written", mend)]
    return [findings.ok("store", f"{settings.store_url} can be written, read and deleted from")]


async def _backends(settings: Settings) -> list[Finding]:
    if not settings.models:
        return [findings.warn("models", "none is configured", "name your inference server in tidemill.toml")]
    room = asyncio.Semaphore(BACKENDS_AT_ONCE_MAX)

    async def of(name: str, model: Model) -> list[Finding]:
        async with room:
            return [await _backend(name, model, backend) for backend in model.backends]

    return [
        found
        for some in await asyncio.gather(*map(of, settings.models, settings.models.values()))
        for found in some
    ]


async def _backend(name: str, model: Model, backend: Backend) -> Finding:
    what = f"backend {backend.base}"
    served = await server_probe.models(backend.base, backend.api_key, backend.ca_file)
    if isinstance(served, server_probe.Unheard):
        mend = "check its key, which api_key_env names" if served.is_refused else "start it, or mend its address"
        return findings.warn(what, f"GET /models: {served.why}", f"{mend}; lines of its models wait")
    if name not in served:
        return findings.warn(
            what, f"answers, and does not list {name}", "check the model's name and its alias there"
        )
    lacking = await server_probe.lacking(backend.base, backend.api_key, model.endpoints, backend.ca_file)
    return findings.backend(what, name, model.endpoints, lacking)


async def _disk(settings: Settings) -> list[Finding]:
    folder = settings.data.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return [findings.disk(f"disk of {settings.data}", shutil.disk_usage(Path(folder)).free)]


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
