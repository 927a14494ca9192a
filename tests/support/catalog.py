"""Writes servers and models to the catalog of a broker."""

from collections.abc import Iterable, Mapping
from typing import Any

from tidemill.configuration import catalog, changes
from tidemill.configuration.catalog import FILE, Applied, Contents, Entry
from tidemill.configuration.security import Kafka
from tidemill.configuration.servers import Model, Server
from tidemill.configuration.settings import Settings
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.producer import Log

AUTHOR = "tests"


def fixed_catalog(servers: Mapping[str, Server], models: Mapping[str, Model]) -> Catalog:
    """A catalog that no topic changes."""
    found = Catalog(None)
    for number, (key, settings) in enumerate(catalog.settings_by_key(servers, models).items()):
        found._fold.put(key, Entry(settings=settings, author=FILE, at=0, revision=number))
    found._fold.applied = Applied(digest="", author=FILE, at=0)
    return found


async def change(kafka: Kafka, wanted: Mapping[str, Mapping[str, Any] | None]) -> Contents:
    """Set entries, and remove those that are None; returns the contents."""
    log, found = Log(kafka), Catalog(kafka)
    await found.start()
    try:
        await found.follower.caught_up()
        contents = await found.change(log, lambda now: changes.planned(now, wanted, author=AUTHOR, at=1))
        if contents.applied is None:
            await found.note_applied(log, Applied(digest="", author=AUTHOR, at=1))
        return found.contents
    finally:
        await found.stop()
        await log.stop()


async def set_up(kafka: Kafka, settings: Settings) -> Iterable[str]:
    """Add the servers and models of settings; returns their keys."""
    named = catalog.settings_by_key(settings.servers, settings.models)
    await change(kafka, named)
    return list(named)
