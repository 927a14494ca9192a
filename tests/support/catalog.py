"""Writes servers and models to the catalog of a broker."""

from collections.abc import Iterable, Mapping
from typing import Any

from tidemill.configuration import catalog, changes
from tidemill.configuration.catalog import Applied, Contents
from tidemill.configuration.security import Kafka
from tidemill.configuration.settings import Settings
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.producer import Log

AUTHOR = "tests"


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
