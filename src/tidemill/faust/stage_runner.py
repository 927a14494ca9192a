"""Runs the process of a stage: topics, health endpoints, heartbeat, apps, and a bounded stop on a signal."""

import asyncio
import functools
import logging
import signal
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import uvloop
from faust.exceptions import ConsumerNotStarted

from tidemill import metrics
from tidemill.configuration.security import Cluster
from tidemill.configuration.settings import Settings
from tidemill.faust.monitored_apps import MonitoredApps
from tidemill.faust.stage_app import StageApp
from tidemill.kafka.admin import (
    PartitionsChanged,
    Retention,
    TopicError,
    check_kept,
    ensure_topics,
    once_ready,
    retention,
)
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.connection import check_broker
from tidemill.kafka.follower import Follower
from tidemill.runtime import health, memory, notify, preflight
from tidemill.runtime.heartbeat import Heartbeat
from tidemill.schemas.ports import Store
from tidemill.telemetry import logs, tracing

log = logging.getLogger("tidemill.stage")

T = TypeVar("T")

LEAVE_SECONDS_MAX = 2.0
"""The process exits this long after the bound of its drain even if its stage has not stopped."""


class Stage(Protocol):
    """A stage, as its process runs it."""

    @property
    def store(self) -> Store | None:
        """The object store, if the stage uses it; valid after `start`."""
        ...

    async def start(self) -> Sequence[StageApp]:
        """Connect to the log and the store; returns the apps to run."""
        ...

    async def stop(self) -> None:
        """Disconnect; the apps have stopped."""
        ...


def run(settings: Settings, role: str, make: Callable[[Settings, Cluster, Catalog], Stage]) -> None:
    """Run a stage until SIGTERM or SIGINT; create missing topics first.

    The event loop calls `make` with the settings, which then have the actual number of partitions, Kafka's
    address, and the catalog, which is filled.

    Raises:
        SettingsError: The settings name no broker.
        SystemExit: An app crashed; its traceback is in the log.
    """
    logs.set_up(role, settings.log, preflight.unknown(settings))
    monitored = MonitoredApps()
    heartbeat = _heartbeat(monitored)
    flush = tracing.set_up(role)
    with heartbeat.guarded(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        has_crashed = runner.run(_run(settings, role, make, monitored, heartbeat))
    flush()
    if has_crashed:
        raise SystemExit(1)


def _heartbeat(monitored: MonitoredApps) -> Heartbeat:
    heartbeat = Heartbeat(monitored.look)
    # A stage may read millions of records before its apps start.
    heartbeat.progress = lambda: monitored.fetched_records() + Follower.catch_up_records
    return heartbeat


async def _run(
    settings: Settings,
    role: str,
    make: Callable[[Settings, Cluster, Catalog], Stage],
    monitored: MonitoredApps,
    heartbeat: Heartbeat,
) -> bool:
    """Run the stage; returns whether it crashed."""
    stop_requested = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_requested.set)
    beating = loop.create_task(heartbeat.run())
    catalog = Catalog(settings.cluster)
    stage: Stage | None = None
    state = health.Health(
        fault=heartbeat.fault,
        probes={
            "kafka": functools.partial(check_broker, settings.cluster),
            "catalog": lambda: _check_catalog(catalog),
            "store": lambda: _check_store(stage, role),
            "assignment": monitored.check_assigned,
        },
        metrics=metrics.text,
    )
    # Before the waits: they may outlast what a supervisor grants to a process that does not answer.
    async with health.serve(state, settings.health_host, settings.health_port):
        if (with_topics := await _with_topics(settings, role, stop_requested)) is None:
            return False
        settings = with_topics
        await catalog.start()
        await _first(stop_requested, catalog.filled())
        if stop_requested.is_set():
            return False
        _check_partitions(catalog, settings)
        stage = make(settings, settings.cluster, catalog)
        if (apps := await _first(stop_requested, stage.start())) is None:
            return False
        monitored.add(apps)

        async def ask() -> Retention:
            return await retention(settings.cluster, catalog.contents.serving.models)

        guarding = loop.create_task(monitored.guard_retention(ask))
        try:
            return await _run_apps(stage, apps, stop_requested, {beating, guarding})
        finally:
            guarding.cancel()
            await catalog.stop()


def _check_partitions(catalog: Catalog, settings: Settings) -> None:
    try:
        check_kept(catalog.contents.partitions, settings.partitions)
    except PartitionsChanged as error:
        log.error("%s", str(error))  # noqa: TRY400  the message says everything
        raise SystemExit(1) from error


async def _check_catalog(catalog: Catalog) -> None:
    if catalog.contents.applied is None:
        raise health.Unhealthy("the catalog is empty: the api writes the servers and models of its settings to it")


async def _check_store(stage: Stage | None, role: str) -> None:
    """See `health.check_store`; a stage may use none, and has none before its start."""
    if stage is not None and (store := stage.store) is not None:
        await health.check_store(store, role)


async def _first(stop_requested: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Wait until the work is done or a stop is requested; returns the work's result, or None."""
    stop, task = asyncio.ensure_future(stop_requested.wait()), asyncio.ensure_future(work)
    await asyncio.wait({stop, task}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
        return None
    return task.result()


async def _with_topics(settings: Settings, role: str, stop_requested: asyncio.Event) -> Settings | None:
    """Create missing topics once the broker is ready; None if a stop is requested first.

    Returns the settings with the number of partitions that the topics have.
    """

    def waits(words: str) -> None:
        log.warning("%s", words)
        notify.progress()

    ready = once_ready(lambda: ensure_topics(settings, settings.cluster, role=role), waits)
    try:
        partitions = await _first(stop_requested, ready)
    except TopicError as error:
        log.error("%s", str(error))  # noqa: TRY400  the message says everything
        raise SystemExit(1) from error
    return None if partitions is None else settings.model_copy(update={"partitions": partitions})


async def _run_apps(
    stage: Stage, apps: Sequence[StageApp], stop_requested: asyncio.Event, needed: "set[asyncio.Task[Any]]"
) -> bool:
    """Run the apps until a stop is requested, or they or a needed task crash; returns whether it crashed."""
    tasks = {asyncio.ensure_future(stop_requested.wait()), asyncio.ensure_future(_serve(apps)), *needed}
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        if (error := task.exception()) is not None:
            log.error("the stage crashed", exc_info=error)
    has_crashed = not stop_requested.is_set()
    seconds_max = max(app.stop_seconds for app in apps) + LEAVE_SECONDS_MAX
    try:
        async with asyncio.timeout(seconds_max):
            await _stop(apps, stage, has_crashed=has_crashed)
    except TimeoutError:
        log.warning("the stage has not stopped after %s s", seconds_max)
    for task in tasks:
        task.cancel()
    return has_crashed


async def _serve(apps: Sequence[StageApp]) -> None:
    """Start the apps, report when all are ready, and return or raise once one of them has crashed."""
    assigned = [_first_assignment(app) for app in apps]
    await asyncio.gather(*(app.start() for app in apps))
    crashes = [asyncio.ensure_future(app._crashed.wait()) for app in apps]  # noqa: SLF001  not public
    ready = asyncio.gather(*assigned)
    await asyncio.wait([*crashes, ready], return_when=asyncio.FIRST_COMPLETED)
    if ready.done():
        memory.freeze_startup_objects()
        notify.ready(beats=True)
        log.info("ready")
        await asyncio.wait(crashes, return_when=asyncio.FIRST_COMPLETED)
    for app in apps:
        if app._crash_reason is not None:  # noqa: SLF001
            raise app._crash_reason  # noqa: SLF001


async def _stop(apps: Sequence[StageApp], stage: Stage, *, has_crashed: bool) -> None:
    for app in apps:
        # An app that is still starting has no consumer yet.
        with suppress(ConsumerNotStarted):
            if (finish := app.finish or app.drain) is not None and not has_crashed:
                await finish(set(app.consumer.assignment()))
                await app.consumer.commit()
    await asyncio.gather(*(app.stop() for app in apps), return_exceptions=True)
    await stage.stop()


def _first_assignment(app: StageApp) -> "asyncio.Future[None]":
    """A future that is done at the app's first assignment, with its tables recovered."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def first(*_: Any, **__: Any) -> None:
        if not future.done():
            future.set_result(None)

    app.on_partitions_assigned.connect(first, weak=False)
    return future
