"""Models that servers list, and the catalog that follows them; the servers are real."""

from collections.abc import Iterator

import pytest
from support.backend import Backend
from support.dependencies import NOW
from support.memory_log import Log

from tidemill.api.listed_models import ADMITTED_MAX, AUTHOR, MISSED_MAX, ListedModels
from tidemill.configuration import changes
from tidemill.configuration.catalog import MODEL, SERVER
from tidemill.kafka.catalog import Catalog


@pytest.fixture
def server() -> Iterator[Backend]:
    with Backend() as made:
        yield made


class World:
    """A catalog with the servers that admit `lora-*`, like the model `base`."""

    def __init__(self, catalog: Catalog, log: Log) -> None:
        self.catalog = catalog
        self.log = log
        self.models = ListedModels(catalog, log, lambda: NOW)

    @classmethod
    async def of(cls, **urls: str) -> "World":
        catalog = Catalog(None)
        world = cls(catalog, Log(catalog))
        servers = {
            SERVER + name: {"url": url, "models": ["lora-*"], "models_like": "base"} for name, url in urls.items()
        }
        base = {
            "servers": list(urls)[:1],
            "tries_max": 5,
            "aliases": ["lora-alias"],
            "endpoints": ["/v1/embeddings"],
        }
        await world.change({**servers, f"{MODEL}base": base})
        return world

    async def change(self, wanted: changes.Wanted) -> None:
        """An operator changes the catalog."""
        await self.catalog.change(self.log, lambda now: changes.planned(now, wanted, author="k", at=NOW))

    @property
    def admitted(self) -> dict[str, tuple[str, ...]]:
        """The models that were found, and their servers."""
        contents = self.catalog.contents
        return {
            name: contents.serving.by_model[name]
            for name in contents.serving.models
            if contents.entries[MODEL + name].author == AUTHOR
        }


async def test_a_listed_model_comes_and_goes(server: Backend) -> None:
    """With the settings of the model that it is like; it goes when it has been missing, and comes again."""
    world = await World.of(gpu=server.url)
    server.lists = ("base", "lora-a", "lora-alias", "other")
    await world.models.look()
    assert world.admitted == {"lora-a": ("gpu",)}
    model = world.catalog.contents.serving.models["lora-a"]
    assert (model.tries_max, model.endpoints, model.aliases) == (5, ("/v1/embeddings",), ())
    written = len(world.log.records)
    await world.models.look()
    assert len(world.log.records) == written, "nothing has changed"
    server.lists = ("lora-b",)
    for _ in range(MISSED_MAX - 1):
        await world.models.look()
        assert set(world.admitted) == {"lora-a", "lora-b"}
    await world.models.look()
    assert set(world.admitted) == {"lora-b"}
    assert world.catalog.contents.entries[MODEL + "lora-a"].removed
    server.lists = ("lora-a",)
    await world.models.look()
    assert "lora-a" in world.admitted
    await world.change({f"{SERVER}gpu": {"url": server.url}})
    await world.models.look()
    assert not world.admitted, "no pattern names them"


async def test_a_model_of_several_servers(server: Backend) -> None:
    """It has those that list it; one that does not answer changes nothing."""
    with Backend() as other:
        world = await World.of(one=server.url, two=other.url)
        server.lists = other.lists = ("lora-a",)
        await world.models.look()
        assert world.admitted == {"lora-a": ("one", "two")}
        other.lists = ()
        for _ in range(MISSED_MAX):
            await world.models.look()
        assert world.admitted == {"lora-a": ("one",)}
        other.lists = ("lora-a", "lora-b")
        await world.models.look()
        assert world.admitted == {"lora-a": ("one", "two"), "lora-b": ("two",)}
    for _ in range(2 * MISSED_MAX):
        await world.models.look()
    assert world.admitted == {"lora-a": ("one", "two"), "lora-b": ("two",)}


async def test_entries_of_operators_stay_as_they_are(server: Backend) -> None:
    """A model that one has set, or changed, or removed."""
    world = await World.of(gpu=server.url)
    await world.change({f"{MODEL}lora-set": {"servers": ["gpu"], "tries_max": 7}})
    server.lists = ("lora-set", "lora-removed", "lora-changed")
    await world.models.look()
    assert set(world.admitted) == {"lora-removed", "lora-changed"}
    await world.change(
        {f"{MODEL}lora-removed": None, f"{MODEL}lora-changed": {"servers": ["gpu"], "paused": True}}
    )
    for lists in ((), server.lists):
        server.lists = lists
        for _ in range(MISSED_MAX):
            await world.models.look()
    models = world.catalog.contents.serving.models
    assert not world.admitted
    assert set(models) == {"base", "lora-set", "lora-changed"}
    assert (models["lora-set"].tries_max, models["lora-changed"].paused) == (7, True)


async def test_a_listed_model_whose_topics_kafka_refuses_is_left_out(server: Backend) -> None:
    """Besides those of another model; all others are admitted."""
    world = await World.of(gpu=server.url)
    await world.change({f"{MODEL}lora-set_1": {"servers": ["gpu"]}})
    server.lists = ("lora-a_1", "lora-set.1", "lora-a.1", "lora-b")
    for _ in range(2):
        await world.models.look()
        assert set(world.admitted) == {"lora-a.1", "lora-b"}


async def test_a_full_catalog_admits_what_fits(
    server: Backend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And follows the models that it has; the log says what is left out, and removed models take no room."""
    monkeypatch.setattr(changes, "ENTRIES_MAX", 5)
    world = await World.of(gpu=server.url)
    for begin in range(3):
        server.lists = tuple(f"lora-{begin + number}" for number in range(5))
        for _ in range(MISSED_MAX + 1):
            await world.models.look()
        assert set(world.admitted) == {f"lora-{begin + number}" for number in range(3)}
    assert caplog.messages[0] == "2 listed models do not fit into the catalog, the first is lora-3"
    assert len(caplog.messages) == 5, "no warning repeats the last one"
    server.lists = ()
    for _ in range(MISSED_MAX):
        await world.models.look()
    assert not world.admitted
    with pytest.raises(ValueError, match="there are 6 servers and models; at most 5"):
        await world.change({f"{MODEL}set-{number}": {"servers": ["gpu"]} for number in range(4)})


async def test_names_ever_admitted_are_bounded(server: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog keeps removed ones; a name that comes back needs no room."""
    monkeypatch.setattr(changes, "NAMES_MAX", 5)
    world = await World.of(gpu=server.url)
    for listed, admitted in (("012", "012"), ("34", ""), ("3420", "20")):
        server.lists = tuple(f"lora-{number}" for number in listed)
        for _ in range(MISSED_MAX + 1):
            await world.models.look()
        assert set(world.admitted) == {f"lora-{number}" for number in admitted}
    with pytest.raises(ValueError, match="there are 6 names of servers and models, with those removed; at most 5"):
        await world.change({f"{MODEL}another": {"servers": ["gpu"]}})


async def test_any_list_is_bounded(server: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """Names that no model can have are left out, and so are too many."""
    world = await World.of(gpu=server.url)
    server.lists = ("lora-\n", "lora-" + "x" * 5_000, *(f"lora-{number:04}" for number in range(2 * ADMITTED_MAX)))
    for _ in range(3):
        await world.models.look()
        assert len(world.admitted) == ADMITTED_MAX
    assert len(caplog.records) == 1
    assert "server gpu lists 402 models" in caplog.text
