"""`tidemill doctor`: checks everything that Tidemill needs, and says how to fix faults."""

import asyncio
import secrets
import shutil
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec

from tidemill.configuration import changes, signing_keys
from tidemill.configuration.catalog import Contents, settings_by_key
from tidemill.configuration.security import Kafka
from tidemill.configuration.servers import Server, Serving
from tidemill.configuration.settings import Settings, SettingsError
from tidemill.kafka import admin, catalog, history
from tidemill.kafka.admin import PartitionsChanged, TopicError
from tidemill.kafka.connection import LogUnavailable, check_broker, topic_identities
from tidemill.ops import Say, dead_letters, findings
from tidemill.ops.findings import Finding
from tidemill.retrying import reason
from tidemill.runtime import preflight, run_file, server_probe
from tidemill.schemas import decoded
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.signing import SignatureError
from tidemill.schemas.ports import Edge, Store, once, read_all
from tidemill.schemas.resources.batch import Status, window_seconds
from tidemill.schemas.resources.waiting import Waits
from tidemill.schemas.webhooks.table import Deliveries
from tidemill.sealing.key_manager import key_file
from tidemill.storage import owner
from tidemill.storage.address import open_store
from tidemill.storage.owner import Fault, Origin

CHECK_SECONDS_MAX: Final = 20.0
"""Bound of each check, and of each server. A read of a whole topic has a bound for the time without a record
(`history.STALL_SECONDS_MAX`) instead: it may take long, and is no sign of an overload."""
SERVERS_AT_ONCE_MAX: Final = 8
PROBE_BYTES: Final = 64
DAY_SECONDS: Final = 86_400
BATCHES_DAYS: Final = 30
"""Only batches whose state has changed since then are read: older ones are over, and there may be millions."""


class _Extras(msgspec.Struct, frozen=True):
    waiting: tuple[msgspec.Raw, ...] = ()


class _Batch(msgspec.Struct, frozen=True):
    status: Status
    tidemill: _Extras = _Extras()

    @property
    def is_waiting(self) -> bool:
        return bool(self.tidemill.waiting) and not self.status.is_terminal


class _BatchRecord(msgspec.Struct, frozen=True):
    batch: _Batch


_batch_records = msgspec.json.Decoder(_BatchRecord)


async def examine(settings: Settings, kafka: Kafka | None, say: Say) -> bool:
    """Run all checks, and print their findings; returns whether none is a failure."""
    found = await _run("settings", _settings(settings), say)
    broker = await _run("kafka", _broker(kafka), say)
    contents = None
    if kafka is not None and findings.is_healthy(broker):
        contents = await _contents(kafka)
        found += await _run("topics", _topics(settings, kafka, contents), say)
        found += await _run("keys", _keys(settings, kafka), say, is_bounded=False)
        found += await _run("clock", _clock(kafka), say)
        found += await _run("batches", _batches(kafka), say, is_bounded=False)
        found += await _run("dead letters", _dead_letters(kafka), say, is_bounded=False)
        found += await _run("webhooks", _webhooks(settings, kafka), say, is_bounded=False)
    found += broker
    found += await _run("store", _store(settings, kafka if findings.is_healthy(broker) else None), say)
    serving = settings.serving if contents is None else contents.serving
    found += await _run("models", _servers(serving), say, is_bounded=False)
    found += await _run("catalog", _unusable(serving, {} if contents is None else contents.faults), say)
    if contents is not None:
        found += await _run("file", _file(settings, contents), say)
    found += await _run("disk", _disk(settings), say)
    counts = {verdict: sum(finding.verdict is verdict for finding in found) for verdict in findings.Verdict}
    say(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return findings.is_healthy(found)


async def _run(
    name: str, check: Coroutine[Any, Any, list[Finding]], say: Say, *, is_bounded: bool = True
) -> list[Finding]:
    """Run a check and print its findings; `is_bounded` if it has no bounds of its own."""
    found = await _checked(name, check, is_bounded=is_bounded)
    for finding in found:
        say(shown(finding))
    return found


async def _checked(
    name: str, check: Coroutine[Any, Any, list[Finding]], *, is_bounded: bool = True
) -> list[Finding]:
    """The findings of a check; one that cannot be made is a failure, and the others go on."""
    try:
        async with asyncio.timeout(CHECK_SECONDS_MAX if is_bounded else None):
            return await check
    except TimeoutError:
        fix = "it may be overloaded: run `tidemill doctor` again, then look into its logs"
        return [findings.fail(name, f"no answer in {CHECK_SECONDS_MAX:.0f} s", fix)]
    except (TopicError, LogUnavailable) as error:
        return [findings.fail(name, str(error), "check that Kafka runs and that ACLs allow the role operator")]
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        fix = "check that it exists, and that this user may read it"
        return [findings.fail(name, f"{place}{error.strerror or reason(error)}", fix)]
    except (SettingsError, ValueError) as error:
        return [findings.fail(name, str(error), "correct it, and run `tidemill doctor` again")]


def shown(finding: Finding) -> str:
    """A finding as a line, with a second one for the fix; ASCII, for every terminal."""
    fix = f"\n      -> {finding.fix}" if finding.fix else ""
    return f"{finding.verdict:<5} {finding.what}: {finding.text}{fix}"


async def _settings(settings: Settings) -> list[Finding]:
    """Settings that would prevent a start or make it wrong: keys that are not set, an address that is in use."""
    found = [findings.warn(lack.setting, lack.text, lack.fix) for lack in preflight.unknown(settings)]
    longest = max(map(window_seconds, settings.windows))
    found += [
        findings.warn(
            f"model {name}",
            f"a call may take {model.timeout_seconds:g} s, and no window is as long",
            "lower its timeout_seconds, so that a call is tried again before the deadline",
        )
        for name, model in settings.models.items()
        if model.timeout_seconds > longest
    ]
    # With an external Kafka the api may run elsewhere; a running service holds its own port.
    if (
        settings.kafka is None
        and run_file.read(settings.data) is None
        and (why := preflight.address_fault(settings))
    ):
        text, _, fix = why.partition("; ")
        found.append(findings.fail("address", text, fix))
    return found or [findings.ok("settings", "valid")]


async def _broker(kafka: Kafka | None) -> list[Finding]:
    if kafka is None:
        return [findings.fail("kafka", "none is configured, and no `tidemill up` runs in this folder",
                              "start `tidemill up`, or set TIDEMILL_KAFKA")]  # fmt: skip
    try:
        await check_broker(kafka)
    except Exception as error:  # noqa: BLE001  any error means that it does not answer
        return [findings.fail("kafka", f"{kafka} does not answer ({reason(error)})",
                              "check the address, its security settings, and that it runs")]  # fmt: skip
    return [findings.ok("kafka", f"{kafka} answers")]


async def _contents(kafka: Kafka) -> Contents | None:
    """The servers and models that the service has; None before it has any, or if they cannot be read."""
    try:
        async with asyncio.timeout(CHECK_SECONDS_MAX):
            contents = await catalog.read(kafka)
    except (OSError, ValueError):
        return None
    return contents if contents.applied is not None else None


async def _unusable(serving: Serving, faults: Mapping[str, str]) -> list[Finding]:
    """Servers and models that cannot be used, or not from here."""
    fix = "correct it: `tidemill servers set`, `tidemill models set`"
    return [
        *(findings.fail(key.replace("/", " ", 1), fault, fix) for key, fault in faults.items()),
        *(findings.fail(lack.setting, lack.text, lack.fix) for lack in preflight.lacking(serving)),
    ]


async def _file(settings: Settings, contents: Contents) -> list[Finding]:
    """Whether the servers and models of the settings wait for `tidemill apply`."""
    why = changes.waiting(contents, settings_by_key(settings.servers, settings.models))
    fix = "`tidemill apply` applies it; if it is not meant to be, remove its servers and models"
    return [findings.warn("settings file", why, fix)] if why else []


async def _topics(settings: Settings, kafka: Kafka, contents: Contents | None) -> list[Finding]:
    models = settings.models if contents is None else contents.serving.models
    of_models = admin.of_models(models)
    replicas = await admin.topic_replicas(kafka, {row.name for row in (*topics.TOPICS, *of_models)})
    # Ingest creates the topics of a model with its first line.
    rows = [*topics.TOPICS, *(row for row in of_models if row.name in replicas)]
    configs = await admin.topic_configs(kafka, [row.name for row in rows])
    judged = [
        findings.topic(
            row,
            replicas=(found := replicas.get(row.name, [])),
            configs=configs.get(row.name, {}),
            wanted=admin.configs_of(row, min(found, default=0)),
            replication=settings.replication,
        )
        for row in rows
    ]
    judged.append(_partitions(settings, {name: len(found) for name, found in replicas.items()}, contents))
    wrong = [finding for finding in judged if finding is not None]
    return wrong or [findings.ok("topics", f"all {len(rows)} exist and are configured as needed")]


def _partitions(settings: Settings, found: Mapping[str, int], contents: Contents | None) -> Finding | None:
    """Whether stages would start with the partitions of the topics."""
    try:
        together = admin.copartitions(topics.TOPICS, found, settings.partitions)
        admin.check_kept(None if contents is None else contents.partitions, together)
    except (TopicError, PartitionsChanged) as error:
        text, _, fix = str(error).partition(". ")
        return findings.fail("partitions", text, fix.removesuffix("."))
    return None


async def _keys(settings: Settings, kafka: Kafka) -> list[Finding]:
    """Whether the api has signed every record of `tidemill.keys`."""
    try:
        verifier = signing_keys.verifier(signing_keys.with_kept(settings))
    except SettingsError as error:
        return [findings.warn("keys", f"cannot be checked here ({error})", "set the same value as for ingest")]
    count, refused = 0, []
    async with history.reading(kafka) as reader:
        async for record in reader.records(topics.KEYS.name):
            count += 1
            try:
                verifier.key_record((record.key or b"").decode(errors="replace"), record.value)
            except SignatureError:
                refused.append(record.offset)
    return [findings.keys(count, refused)]


async def _clock(kafka: Kafka) -> list[Finding]:
    """Judge the clock: a record has its producer's time, so the newest one must not lie in the future."""
    async with history.reading(kafka) as reader:
        at = await reader.newest(topics.BATCHES.name)
    return [findings.clock(None if at is None else at - time.time())]


async def _batches(kafka: Kafka) -> list[Finding]:
    """Reasons why batches wait, by their latest records."""
    count = 0
    stalled: dict[str, Waits] = {}
    since = Edge(at_ms=int((time.time() - BATCHES_DAYS * DAY_SECONDS) * 1000))
    async with history.reading(kafka) as reader:
        async for record in reader.records(topics.BATCHES.name, since):
            count += 1
            key = (record.key or b"").decode(errors="replace")
            stalled.pop(key, None)
            if (waits := _waits(record.value)) is not None:
                stalled[key] = waits
    return findings.stalled(stalled, days=BATCHES_DAYS) if count else []


def _waits(value: bytes | None) -> Waits | None:
    """Why an unfinished batch waits; None if it does not, or its record cannot be read."""
    # Few of very many batches wait, so only those are decoded in full.
    if value is None or (record := decoded(_batch_records, value)) is None or not record.batch.is_waiting:
        return None
    with suppress(DecodeError):
        return codec.decode_batch(value).batch.tidemill.waiting
    return None


async def _dead_letters(kafka: Kafka) -> list[Finding]:
    """How many records of the last day are dead letters; older ones may be too many to read here."""
    since = Edge(at_ms=int((time.time() - DAY_SECONDS) * 1000))
    async with history.reading(kafka) as reader:
        found = await dead_letters.known(reader, since)
    return [findings.dead_letters(len(found.waiting))]


async def _webhooks(settings: Settings, kafka: Kafka) -> list[Finding]:
    """Endpoints that fail, and whether the secrets of new ones can be encrypted."""
    deliveries = Deliveries()
    async with history.reading(kafka) as reader:
        async for record in reader.records(topics.DELIVERIES.name):
            deliveries.apply((record.key or b"").decode(errors="replace"), record.value, record.offset)
    failing = [health for each in deliveries.endpoints() if (health := deliveries.health(each)) is not None]
    return findings.webhooks(failing, has_key_file=key_file(settings).exists())


async def _store(settings: Settings, kafka: Kafka | None) -> list[Finding]:
    key, content = f"health/doctor-{secrets.token_hex(8)}", secrets.token_bytes(PROBE_BYTES)
    kind = urlsplit(settings.store_url).scheme
    fix = (
        "check that the folder can be written" if kind == "file" else "check the bucket, its keys and its address"
    )
    folder = Path(unquote(urlsplit(settings.store_url).path))
    if kind == "file" and not await asyncio.to_thread(folder.exists):
        # A check creates nothing, since it may run in the wrong folder.
        if (fault := await _store_fault(None, kafka)) is not None:
            return [findings.fail("store", f"{folder} does not exist: {fault.text}", fault.fix)]
        return [findings.warn("store", f"{folder} does not exist yet", "a service creates it when it starts")]
    store: Store | None = None
    try:
        store = open_store(settings.store_url)
        await store.write(key, once(content))
        read = await read_all(store.read(key))
        await store.delete(key)
        marked = await owner.content_of(store)
    except Exception as error:  # noqa: BLE001  any error means that the store does not work
        return [findings.fail("store", f"{settings.store_url}: {reason(error)}", fix)]
    finally:
        if store is not None:
            await store.close()
    if read != content:
        return [findings.fail("store", f"{settings.store_url} returns other bytes than were written", fix)]
    if (fault := await _store_fault(marked, kafka)) is not None:
        return [findings.fail("store", f"{settings.store_url}: {fault.text}", fault.fix)]
    return [findings.ok("store", f"{settings.store_url} can be written, read and deleted")]


async def _store_fault(marked: bytes | None, kafka: Kafka | None) -> Fault | None:
    """Why the log does not own a store with this object `owner`; None too if no Kafka can say so."""
    return None if kafka is None else owner.judge(marked, await _origin(kafka))


async def _origin(kafka: Kafka) -> Origin:
    """The log as the owner of a store; one without topics owns a new store."""
    name = topics.FILES.name
    async with history.reading(kafka) as reader:
        if not reader.partitions(name):
            return Origin("/", 0)
        files = (await reader.ends(name, [0]))[0][1]
    return Origin((await topic_identities(kafka, [name]))[name], files)


async def _servers(serving: Serving) -> list[Finding]:
    if not serving.models:
        return [findings.warn("models", "there is none", "name your inference server in tidemill.toml")]
    room = asyncio.Semaphore(SERVERS_AT_ONCE_MAX)

    async def of(name: str, server: Server) -> list[Finding]:
        if server.lack is not None:
            return []
        async with room:
            return await _checked(f"server {name} ({server.base})", _server(serving, name, server))

    found = await asyncio.gather(*map(of, serving.servers, serving.servers.values()))
    return [finding for some in found for finding in some]


async def _server(serving: Serving, name: str, server: Server) -> list[Finding]:
    """Whether a server answers, and serves the models that name it, with their endpoints."""
    what, models = f"server {name} ({server.base})", serving.models_of(name)
    served = await server_probe.models(server)
    if isinstance(served, server_probe.NoModels):
        fix = "check its key, which api_key_env names" if served.is_refused else "start it, or fix its address"
        return [findings.warn(what, f"GET /models: {served.why}", f"{fix}; until then lines of its models wait")]
    found = [] if models else [findings.ok(what, "answers; no model names it")]
    for model in models:
        settings_of = serving.models[model]
        if (upstream := settings_of.upstream_model or model) not in served:
            fix = "check the model's name in tidemill.toml (upstream_model) and on the server"
            found.append(findings.warn(what, f"does not list {upstream}", fix))
            continue
        lacking = await server_probe.lacking(server, settings_of.endpoints)
        found.append(findings.server(what, model, settings_of.endpoints, lacking))
    return found


async def _disk(settings: Settings) -> list[Finding]:
    """Free space of the disk of the data, and of that of a store in a folder, if it is another."""
    folders = [settings.data]
    if (url := urlsplit(settings.store_url)).scheme == "file":
        folders.append(Path(unquote(url.path)))
    disks: dict[int, Finding] = {}
    for name in folders:
        folder = name.absolute()
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        found = findings.disk(f"disk of {name}", shutil.disk_usage(folder).free, settings.disk_reserve_bytes)
        disks.setdefault(folder.stat().st_dev, found)
    return list(disks.values())
