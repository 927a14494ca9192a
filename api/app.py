"""Composes the api and serves it."""

import asyncio
import contextlib
import functools
import logging
import signal
import time
from collections.abc import AsyncIterator, Iterable, Iterator

import uvloop
from fastapi import FastAPI

from tidemill import metrics
from tidemill.api import error_handlers, middleware
from tidemill.api.access import auth
from tidemill.api.access.people import People
from tidemill.api.access.sessions import Sessions
from tidemill.api.anthropic import routes as message_batches
from tidemill.api.batches import file_removal
from tidemill.api.changes import ChangeFeed
from tidemill.api.dependencies import Access, Dependencies, Reading
from tidemill.api.http.server import Server
from tidemill.api.listed_models import ListedModels
from tidemill.api.routes import (
    batches,
    events,
    files,
    reruns,
    results,
    service,
    single_requests,
    throughput,
    uploads,
    usage,
    webhooks,
)
from tidemill.api.routes.admin import audit, dead_letters, keys, servers
from tidemill.api.routes.admin import settings as settings_in_force
from tidemill.api.routes.dashboard import session, sign_in
from tidemill.api.servers.load import Loads
from tidemill.api.view.sqlite import Database
from tidemill.api.view.view import Record, View
from tidemill.api.webhooks import Webhooks
from tidemill.configuration import signing_keys
from tidemill.configuration.catalog import SETTINGS_FILE, settings_by_key
from tidemill.configuration.connections import EXPOSED
from tidemill.configuration.security import Cluster
from tidemill.configuration.servers import Serving
from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import TopicError, ensure_topics
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.connection import LogUnavailable, check_broker
from tidemill.kafka.follower import Follower, Tail, TimedFollower, start_together
from tidemill.kafka.following import Following
from tidemill.kafka.history import LogHistory
from tidemill.kafka.log_space import log_space
from tidemill.kafka.producer import Log
from tidemill.runtime import health, memory, notify, preflight
from tidemill.runtime.heartbeat import Heartbeat
from tidemill.runtime.listening import listen
from tidemill.schemas.log import topics
from tidemill.schemas.log.signing import Signer, Verifier
from tidemill.schemas.ports import Store
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.resources.batch import Batch
from tidemill.schemas.webhooks.addresses import networks
from tidemill.sealing.key_manager import KeyManager, wrapper
from tidemill.sealing.webhook_secrets import WebhookSecrets
from tidemill.tasks import Crash, CrashLatch, watched
from tidemill.telemetry import logs, tracing

log = logging.getLogger(__name__)

TOPICS_SECONDS = 5.0
"""Pause between attempts to create the topics and to fill the catalog."""
AT_ONCE = (topics.CLAIMS, topics.UPLOADS, topics.KEYS, topics.AUDIT, topics.SECRETS)
"""Topics of the view whose followers apply records at once, since requests wait for them."""
RESTING = (topics.BATCHES, topics.FILES, topics.LEDGER)
"""The view's other topics; each batch that ends adds a record to every one of them."""
REPORTS_READ = 2_000
"""Reports of processors that the api reads at its start: more than they send until the first ones are stale."""
REST_SECONDS = 0.025
"""Pause between fetches of their followers, since many batches may end at once."""


def create_app(deps: Dependencies) -> FastAPI:
    """Compose the app; the caller opens and closes its dependencies."""
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=middleware.stack(deps.settings),
        telemetry=middleware.TRACED,
    )
    app.state.dependencies = deps
    error_handlers.install(app)
    # Clients poll batches, and each request is matched with the routes in this order.
    for routes in (
        batches,
        files,
        uploads,
        message_batches,
        reruns,
        results,
        single_requests,
        throughput,
        usage,
        keys,
        audit,
        events,
        webhooks,
        servers,
        settings_in_force,
        dead_letters,
        service,
        sign_in,
        session,
    ):
        # FastAPI's own inclusion matches each request twice.
        app.router.routes.extend(routes.router.routes)
    app.mount(session.PATH, session.Files())
    return app


@contextlib.asynccontextmanager
async def opened(settings: Settings, crash: Crash) -> AsyncIterator[tuple[Dependencies, list[Follower]]]:
    """Open the dependencies that the settings name, and close them on exit; `crash` ends the process.

    Yields:
        The dependencies, and the followers that feed the view, which have begun.

    Raises:
        SettingsError: A setting is missing or cannot be used.
        OSError: The folder of the state or the store cannot be written.
    """
    cluster = settings.cluster
    auth.bootstrap(settings)
    signer, verifier = signing_keys.signer(settings), signing_keys.verifier(settings)
    async with contextlib.AsyncExitStack() as stack:
        sender = Log(cluster)
        key_manager = KeyManager(settings, cluster, sender)
        store = key_manager.open_store()
        stack.push_async_callback(store.close)
        view = View(database := Database(settings.data / "state" / "api"), time.time, verifier)
        stack.callback(view.close)
        stack.callback(watched(asyncio.create_task(database.damaged()), crash).cancel)
        stack.push_async_callback(sender.stop)
        catalog = _catalog(cluster, view)
        stack.callback(watched(asyncio.create_task(_set_up(settings, cluster, catalog, sender)), crash).cancel)
        space = log_space(cluster, settings.disk_reserve_bytes, store=store.free)
        stack.push_async_callback(space.stop)
        hooks = Webhooks(sender, WebhookSecrets(wrapper(settings)), networks(settings.webhook_allow), time.time)
        loads = _loads(catalog, view)
        followers = _started(
            (catalog.follower,),
            (key_manager.follower,),
            *_of_webhooks(cluster, hooks, view.feed),
            (_of_loads(cluster, loads),),
            *_of_view(cluster, view),
        )
        for follower in followers:
            stack.push_async_callback(follower.stop)
        with contextlib.suppress(LogUnavailable):
            await sender.start()
        stack.callback(watched(asyncio.create_task(ListedModels(catalog, sender, time.time).run()), crash).cancel)
        deps = Dependencies(
            settings=settings,
            catalog=catalog,
            access=_access(settings, view, signer, verifier),
            signer=signer,
            log=sender,
            history=LogHistory(cluster),
            store=store,
            space=space,
            view=view,
            webhooks=hooks,
            loads=loads,
            vault=key_manager.vault,
            clock=time.time,
            reading=_reading(followers, catalog, store, view),
        )
        stack.push_async_callback(deps.buckets.close)
        yield deps, followers


def _reading(followers: Iterable[Follower], catalog: Catalog, store: Store, view: View) -> Reading:
    def is_ready() -> bool:
        return all(follower.is_caught_up for follower in followers) and catalog.contents.applied is not None

    following = Following(followers)
    metrics.VIEW_AGE.sample(following.ages)
    owner = following.owner(store, view.orphans.outer_keys)
    return Reading(is_ready, following.catch_up, owner, following.fault, following.silent_since)


def _catalog(cluster: Cluster, view: View) -> Catalog:
    catalog = Catalog(cluster)
    catalog.listen(lambda: view.feed.publish_to_all("catalog", ""))
    return catalog


def _access(settings: Settings, view: View, signer: Signer, verifier: Verifier) -> Access:
    keys = auth.keys(settings, view.keyring, time.time)
    people = provider = None
    if settings.openid is not None:
        from tidemill.api.access.provider import Provider  # noqa: PLC0415  a tenth of the start

        people, provider = People(settings.openid), Provider(settings.openid, time.time)
    return Access(
        keys=keys,
        sessions=Sessions(keys, signer, verifier, view.audit.has_ended, time.time, people=people),
        provider=provider,
        people=people,
    )


class Feed:
    """Feeds one topic to the view: gathers the records of a fetch and folds them in one transaction."""

    def __init__(self, view: View, topic: str) -> None:
        self.topic = topic
        self._view = view
        self._records: list[Record] = []

    def apply(self, key: str, value: bytes | None, offset: int) -> None:
        """Add a record of the fetch."""
        self._records.append((key, value, offset))

    def applied(self) -> None:
        """Fold the records of the fetch."""
        records, self._records = self._records, []
        self._view.fold(self.topic, records)

    def resume(self, tail: Tail) -> int:
        """Drop unfolded records; returns the offset to read from."""
        self._records.clear()
        return self._view.resume(self.topic, tail)


async def _set_up(settings: Settings, cluster: Cluster, catalog: Catalog, sender: Log) -> None:
    """Create missing topics, and fill an empty catalog; meanwhile the api serves requests that need no broker."""
    while True:
        try:
            partitions = await ensure_topics(settings, cluster, role="api")
            await catalog.follower.caught_up()
            await catalog.keep_partitions(sender, partitions)
            servers = settings_by_key(settings.servers, settings.models)
            await catalog.fill(sender, servers, author=SETTINGS_FILE, again=False)
        except (TopicError, LogUnavailable, ValueError) as error:
            log.warning("%s; trying again in %.0f s", error, TOPICS_SECONDS)
            await asyncio.sleep(TOPICS_SECONDS)
        else:
            return


def _started(*groups: tuple[Follower, ...]) -> list[Follower]:
    """Start followers; those of a group share a consumer."""
    for group in groups:
        start_together(*group)
    return [follower for group in groups for follower in group]


def _of_view(cluster: Cluster, view: View) -> Iterator[tuple[Follower, ...]]:
    """The followers that feed the view."""
    for folded, rest_seconds in ((AT_ONCE, 0.0), (RESTING, REST_SECONDS)):
        yield tuple(
            Follower(
                cluster,
                feed.topic,
                feed.apply,
                resume=feed.resume,
                applied=feed.applied,
                rest_seconds=rest_seconds,
            )
            for feed in (Feed(view, topic.name) for topic in folded)
        )


def _of_webhooks(cluster: Cluster, hooks: Webhooks, feed: ChangeFeed) -> Iterator[tuple[Follower, ...]]:
    """The followers that fill the endpoints and deliveries of webhooks."""

    def apply(key: str, value: bytes | None, offset: int) -> None:
        before = hooks.endpoints.get(key)
        hooks.endpoints.apply(key, value, offset)
        if (record := hooks.endpoints.get(key) or before) is not None:
            feed.publish(record.project, "webhook_endpoint", key)

    for topic, fill in ((topics.WEBHOOKS, apply), (topics.DELIVERIES, hooks.deliveries.apply)):
        yield (Follower(cluster, topic.name, hooks.waking(fill)),)


def _loads(catalog: Catalog, view: View) -> Loads:
    """The load of servers, which the view shows in the series of batches."""
    loads = Loads(time.time, lambda: catalog.contents.serving.servers, view.feed.publish_load)
    view.throughput.limit_of = lambda batch: loads.limit(_servers(catalog.contents.serving, batch))
    return loads


def _servers(serving: Serving, batch: Batch) -> set[str]:
    """The servers of the models of a batch."""
    models = [share.model for share in batch.tidemill.models] or [batch.model or ""]
    return {server for model in models for server in serving.by_model.get(model, ())}


def _of_loads(cluster: Cluster, loads: Loads) -> Follower:
    """The follower of load reports; it starts with the last `REPORTS_READ`, since older ones are stale."""
    follower = TimedFollower(
        cluster, topics.SERVERS.name, resume=lambda tail: max(0, tail.end - REPORTS_READ),
        apply=lambda key, value, _: loads.apply(key, value, follower.record_at, is_old=not follower.is_caught_up),
    )  # fmt: skip
    return follower


async def serve(settings: Settings, heartbeat: Heartbeat) -> bool:
    """Serve until SIGINT or SIGTERM; report readiness when the view has caught up. Returns whether it crashed.

    Raises:
        SettingsError: A setting is missing or cannot be used, or the address is taken.
        OSError: A folder cannot be written.
    """
    if settings.is_exposed:
        log.warning(EXPOSED, settings.host)
    fault = CrashLatch()
    async with opened(settings, fault) as (deps, followers), _with_health(deps, heartbeat, fault):
        serving = Server(create_app(deps), settings)
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        with listen(settings.host, settings.port) as listening:
            task = asyncio.create_task(serving.serve(sockets=[listening]))
            finishing = watched(asyncio.create_task(_finish_start(deps, followers)), fault)
            ends = [asyncio.create_task(stopped.wait()), asyncio.create_task(fault.wait())]
            await asyncio.wait([task, *ends], return_when=asyncio.FIRST_COMPLETED)
            for each in (finishing, *ends):
                each.cancel()
            deps.events.close()
            serving.should_exit = True
            await task
    if fault.error is not None:
        log.error("the api crashed", exc_info=fault.error)
    return fault.error is not None


@contextlib.asynccontextmanager
async def _with_health(deps: Dependencies, heartbeat: Heartbeat, crash: Crash) -> AsyncIterator[None]:
    """Send heartbeats, and serve the health of the process on its own port."""

    def fault_of_start() -> str | None:
        return None if deps.reading.is_ready() else deps.reading.fault() or "the catalog is empty"

    state = health.Health(
        fault=heartbeat.fault,
        probes={
            "kafka": functools.partial(check_broker, deps.settings.cluster),
            "store": functools.partial(health.check_store, deps.store, "api", deps.owner),
            "start": functools.partial(health.check, fault_of_start),
            "view": functools.partial(health.check, deps.reading.fault),
        },
        metrics=metrics.text,
    )
    heartbeat.progress = lambda: Follower.catch_up_records
    beating = watched(asyncio.create_task(heartbeat.run()), crash)
    try:
        async with health.serve(state, deps.settings.health_host, deps.settings.health_port):
            yield
    finally:
        beating.cancel()


async def _finish_start(deps: Dependencies, followers: list[Follower]) -> None:
    await asyncio.gather(*(follower.caught_up() for follower in followers), deps.catalog.filled())
    await deps.space.start()
    await deps.trail.record_settings(deps.settings, deps.view.audit.newest(Action.SETTINGS_CHANGE))
    await keys.sign_again(deps)
    await file_removal.check_owner(deps)
    memory.freeze_startup_objects()
    notify.ready(beats=True)
    # Only a view that has caught up knows which files a batch reads.
    await file_removal.sweep_forever(deps)


def main(settings: Settings) -> None:
    """Run the stage until SIGINT or SIGTERM.

    Raises:
        SettingsError: A setting is missing or cannot be used, or the address is taken.
        OSError: A folder cannot be written.
        SystemExit: It crashed; its traceback is in the log.
    """
    logs.set_up("api", settings.log, preflight.unknown(settings))
    flush = tracing.set_up("api")
    heartbeat = Heartbeat()
    with heartbeat.guarded(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        has_crashed = runner.run(serve(settings, heartbeat))
    flush()
    if has_crashed:
        raise SystemExit(1)
