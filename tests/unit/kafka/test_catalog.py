"""Two writers of the catalog at the same time, on one log."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from support.memory_log import Log

from tidemill.configuration import changes
from tidemill.configuration.catalog import Contents, Entry
from tidemill.kafka.catalog import Catalog

A = {"server/a": {"url": "http://a/v1"}, "server/b": {"url": "http://b/v1"}}


def plan(wanted: Mapping[str, Mapping[str, Any] | None]) -> Callable[[Contents], dict[str, Entry]]:
    return lambda contents: changes.planned(contents, wanted, author="k", at=1)


def with_setting(key: str, **settings: object) -> Callable[[Contents], dict[str, Entry]]:
    """Change some settings of an entry, as the api does."""

    def of(contents: Contents) -> dict[str, Entry]:
        wanted = {key: {**contents.entries[key].settings, **settings}}
        return changes.planned(contents, wanted, author="k", at=1)

    return of


@pytest.fixture
async def both() -> tuple[Catalog, Catalog, Log]:
    one, two = Catalog(None), Catalog(None)
    log = Log(one, two)
    await one.change(log, plan(A))
    return one, two, log


async def test_settings_of_both_are_kept(both: tuple[Catalog, Catalog, Log]) -> None:
    """Neither loses what the other one set."""
    one, two, log = both
    log.before = lambda: two.change(log, with_setting("server/a", share=0.5))
    contents = await one.change(log, with_setting("server/a", max_in_flight=3))
    server = contents.serving.servers["a"]
    assert (server.max_in_flight, server.share) == (3, 0.5)
    assert two.contents == contents


async def test_a_contradiction_is_undone(both: tuple[Catalog, Catalog, Log]) -> None:
    """The later one is refused, and the catalog is as the first one left it."""
    one, two, log = both
    log.before = lambda: two.change(log, plan({"model/m": {"servers": ["a"]}}))
    with pytest.raises(ValueError, match=r"servers\.a: models\.m name it"):
        await one.change(log, plan({"server/a": None}))
    assert {*one.contents.serving.servers} == {"a", "b"}
    assert {*one.contents.serving.models} == {"m"}
    assert not one.contents.faults
    assert two.contents == one.contents


async def test_other_changes_do_not_disturb(both: tuple[Catalog, Catalog, Log]) -> None:
    """And nothing is written twice."""
    one, two, log = both
    log.before = lambda: two.change(log, with_setting("server/b", drain=True))
    await one.change(log, with_setting("server/a", drain=True))
    assert all(server.drain for server in one.contents.serving.servers.values())
    assert len(log.records) == 4
