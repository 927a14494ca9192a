"""Composes the api and serves it."""

import asyncio
import contextlib
import functools
import logging
import signal
import time
from collections.abc import AsyncIterator

import uvloop
from fastapi import FastAPI

from tidemill import metrics
from tidemill.api import error_handlers, middleware
from tidemill.api.access import auth
from tidemill.api.anthropic import routes as message_batches
from tidemill.api.batches import file_removal
from tidemill.api.dependencies import Access, Dependencies
from tidemill.api.http.server import Server
from tidemill.api.listed_models import ListedModels
from tidemill.api.routes import (
    audit,
    batches,
    dashboard,
    files,
    keys,
    reruns,
    results,
    servers,
    service,
    uploads,
    usage,
    webhooks,
)
from tidemill.api.view.sqlite import Database
from tidemill.api.view.view import Record, View
from tidemill.api.webhooks import Webhooks
from tidemill.configuration import signing_keys
from tidemill.configuration.catalog import SETTINGS_FILE, named
from tidemill.configuration.connections import EXPOSED
from tidemill.configuration.security import Cluster
from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import TopicError, ensure_topics
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.connection import LogUnavailable, check_broker
from tidemill.kafka.follower import Follower, Tail
from tidemill.kafka.history import LogHistory
from tidemill.kafka.log_space import log_space
from tidemill.kafka.producer import Log
from tidemill.runtime import gc_tuning, health, log_dedup, notify
from tidemill.runtime.heartbeat import Heartbeat
from tidemill.runtime.listening import listen
from tidemill.schemas.log import topics
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.webhooks.addresses import networks
from tidemill.sealing.key_manager import KeyManager, wrapper
from tidemill.sealing.webhook_secrets import WebhookSecrets
from tidemill.storage.address import open_store

log = logging.getLogger(__name__)

TOPICS_SECONDS = 5.0
"""Pause between attempts to create the topics and to fill the catalog."""
FOLDED = (
    topics.BATCHES,
    topics.FILES,
    topics.CLAIMS,
    topics.UPLOADS,
    topics.KEYS,
    topics.AUDIT,
    topics.SECRETS,
    topics.LEDGER,
)
"""The topics that the view is folded from."""
REST_SECONDS = {topics.BATCHES.name: 0.025, topics.FILES.name: 0.025, topics.LEDGER.name: 0.1}
"""How long their followers rest: many batches may end at once, and each leaves a record in every one of these."""


def create_app(deps: Dependencies) -> FastAPI:
    """Compose the app; the caller opens and closes its dependencies."""
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=middleware.stack(deps.settings),
    )
    app.state.dependencies = deps
    error_handlers.install(app)
    for routes in (
        files,
        uploads,
        batches,
        message_batches,
        reruns,
        results,
        usage,
        keys,
        audit,
        webhooks,
        servers,
        service,
        dashboard,
    ):
        app.include_router(routes.router)
    app.mount(dashboard.PATH, dashboard.Files())
    return app


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[Dependencies, list[Follower]]]:
    """Open the dependencies that the settings name, and close them on exit.

    Yields:
        The dependencies, and the followers that feed the view, which have begun.

    Raises:
        SettingsError: A setting is missing or cannot be used.
        OSError: The folder of the state or the store cannot be written.
    """
    cluster = settings.cluster
    auth.bootstrap(settings)
    signer = signing_keys.signer(settings)
    async with contextlib.AsyncExitStack() as stack:
        sender = Log(cluster)
        key_manager = KeyManager(settings, cluster, sender)
        store = key_manager.store(open_store(settings.store_url, reserve_bytes=settings.disk_reserve_bytes))
        stack.push_async_callback(store.close)
        view = View(Database(settings.data / "state" / "api"), time.time, signing_keys.verifier(settings))
        stack.callback(view.close)
        stack.push_async_callback(sender.stop)
        catalog = Catalog(cluster)
        setting_up = asyncio.create_task(_set_up(settings, cluster, catalog, sender))
        stack.callback(setting_up.cancel)
        space = log_space(cluster, settings.disk_reserve_bytes, store=store.free)
        stack.push_async_callback(space.stop)
        hooks = Webhooks(sender, WebhookSecrets(wrapper(settings)), networks(settings.webhook_allow), time.time)
        followers = [
            catalog.follower,
            key_manager.follower,
            *_of_webhooks(cluster, hooks),
            *(_follower(cluster, Feed(view, topic.name)) for topic in FOLDED),
        ]
        for follower in followers:
            await follower.start()
            stack.push_async_callback(follower.stop)
        with contextlib.suppress(LogUnavailable):
            await sender.start()
        looking = asyncio.create_task(ListedModels(catalog, sender, time.time).run())
        stack.callback(looking.cancel)
        yield (
            Dependencies(
                settings=settings,
                catalog=catalog,
                access=Access(keys=auth.keys(settings, view.keyring, time.time)),
                signer=signer,
                log=sender,
                history=LogHistory(cluster),
                store=store,
                space=space,
                view=view,
                webhooks=hooks,
                vault=key_manager.vault,
                clock=time.time,
                is_ready=lambda: (
                    all(follower.is_caught_up for follower in followers) and catalog.contents.applied is not None
                ),
            ),
            followers,
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
            await ensure_topics(settings, cluster, role="api")
            await catalog.follower.caught_up()
            if catalog.contents.applied is None:
                servers = named(settings.servers, settings.models)
                await catalog.fill(sender, servers, author=SETTINGS_FILE, again=False)
        except (TopicError, LogUnavailable, ValueError) as error:
            log.warning("%s; trying again in %.0f s", error, TOPICS_SECONDS)
            await asyncio.sleep(TOPICS_SECONDS)
        else:
            return


def _follower(cluster: Cluster, feed: Feed) -> Follower:
    return Follower(
        cluster,
        feed.topic,
        feed.apply,
        resume=feed.resume,
        applied=feed.applied,
        rest_seconds=REST_SECONDS.get(feed.topic, 0.0),
    )


def _of_webhooks(cluster: Cluster, hooks: Webhooks) -> tuple[Follower, ...]:
    """The followers that fill the endpoints and deliveries of webhooks."""
    filled = {topics.WEBHOOKS: hooks.endpoints.apply, topics.DELIVERIES: hooks.deliveries.apply}
    return tuple(
        Follower(cluster, topic.name, apply, applied=hooks.changes.notify) for topic, apply in filled.items()
    )


async def serve(settings: Settings, heartbeat: Heartbeat) -> None:
    """Serve until SIGINT or SIGTERM; report readiness when the view has caught up.

    Raises:
        SettingsError: A setting is missing or cannot be used, or the address is taken.
        OSError: A folder cannot be written.
    """
    if settings.is_exposed:
        log.warning(EXPOSED, settings.host)
    async with opened(settings) as (deps, followers), _watched(deps, followers, heartbeat):
        serving = Server(create_app(deps), settings)
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        with listen(settings.host, settings.port) as listening:
            task = asyncio.create_task(serving.serve(sockets=[listening]))
            finishing = asyncio.create_task(_finish_start(deps, followers))
            await asyncio.wait(
                [task, stopping := asyncio.create_task(stopped.wait())], return_when=asyncio.FIRST_COMPLETED
            )
            finishing.cancel()
            stopping.cancel()
            serving.should_exit = True
            await task


@contextlib.asynccontextmanager
async def _watched(deps: Dependencies, followers: list[Follower], heartbeat: Heartbeat) -> AsyncIterator[None]:
    """Send heartbeats, and serve the health of the process on its own port."""

    async def check_view() -> None:
        if not deps.is_ready():
            behind = sum(not follower.is_caught_up for follower in followers)
            raise health.Unhealthy(f"{behind} of {len(followers)} topics are still being read")

    state = health.Health(
        fault=heartbeat.fault,
        probes={
            "kafka": functools.partial(check_broker, deps.settings.cluster),
            "store": functools.partial(health.check_store, deps.store, "api"),
            "view": check_view,
        },
        metrics=metrics.text,
    )
    beating = asyncio.create_task(heartbeat.run())
    try:
        async with health.serve(state, deps.settings.health_host, deps.settings.health_port):
            yield
    finally:
        beating.cancel()


async def _finish_start(deps: Dependencies, followers: list[Follower]) -> None:
    for follower in followers:
        await follower.caught_up()
    await deps.catalog.filled()
    await deps.space.start()
    await deps.trail.record_settings(deps.settings, deps.view.audit.newest(Action.SETTINGS_CHANGE))
    await keys.sign_again(deps)
    gc_tuning.freeze_startup_objects()
    notify.ready(beats=True)
    # Only a view that has caught up knows which files a batch reads.
    await file_removal.sweep_forever(deps)


def main(settings: Settings) -> None:
    """Run the stage until SIGINT or SIGTERM.

    Raises:
        SettingsError: A setting is missing or cannot be used, or the address is taken.
        OSError: A folder cannot be written.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log_dedup.install()
    heartbeat = Heartbeat()
    with heartbeat.guarded(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, heartbeat))
