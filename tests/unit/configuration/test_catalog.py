"""The catalog: folding its records, and checking changes of it."""

import tomllib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from tidemill.configuration import catalog, changes
from tidemill.configuration.catalog import FILE, SERVER, Applied, Contents, Entry, Fold, PriceError
from tidemill.configuration.servers import Model, Price, Server
from tidemill.configuration.settings import Settings
from tidemill.schemas import fingerprint_of

NAMES = st.sampled_from(["a", "b", "c"])
SERVERS = st.builds(
    lambda host, more: {"url": f"http://{host}/v1"} | more,
    st.sampled_from(["one", "two", "three"]),
    st.sampled_from(
        [
            {},
            {"max_in_flight": 3},
            {"drain": True},
            {"headroom": True},
            {"headroom": {"ttft_ms": 60}},
            {"url": "no address"},
        ]
    ),
)
MODELS = st.builds(
    lambda servers, more: {"servers": servers} | more,
    st.lists(NAMES, min_size=1, max_size=2, unique=True),
    st.sampled_from(
        [{}, {"aliases": ["c"]}, {"aliases": ["d"]}, {"paused": True}, {"price": {"input_per_million": "1"}}]
    ),
)
SETTINGS = st.dictionaries(
    st.builds(str.__add__, st.just("server/"), NAMES), SERVERS | st.none()
) | st.dictionaries(st.builds(str.__add__, st.just("model/"), NAMES), MODELS | st.none())
RECORDS = st.lists(
    st.tuples(st.builds(str.__add__, st.just("server/"), NAMES), SERVERS, st.booleans())
    | st.tuples(st.builds(str.__add__, st.just("model/"), NAMES), MODELS, st.booleans()),
    max_size=12,
)


def value(settings: dict[str, object], *, removed: bool = False) -> bytes:
    entry = Entry(settings=settings, removed=removed, author="k", at=1)
    return entry.model_dump_json(exclude={"revision"}).encode()


def folded(records: Iterable[tuple[str, bytes | None, int]]) -> Contents:
    fold = Fold()
    for record in records:
        fold.apply(*record)
    return fold.contents()


def written(contents: Contents, entries: dict[str, Entry]) -> Contents:
    """The contents after the records of entries."""
    fold = Fold.of(contents)
    for key, entry in catalog.in_order(entries):
        fold.apply(key, entry.model_dump_json(exclude={"revision"}).encode(), fold.revision + 1)
    return fold.contents()


@given(RECORDS)
def test_a_compacted_topic_gives_the_same(records: list[tuple[str, dict[str, object], bool]]) -> None:
    """Whatever the records say: what cannot be used is left out, with the reason."""
    log = [(key, value(settings, removed=gone), n) for n, (key, settings, gone) in enumerate(records)]
    last = {key: (key, text, n) for key, text, n in log}
    contents = folded(log)
    compacted = folded(sorted(last.values(), key=lambda record: record[2]))
    assert compacted == contents
    usable = {f"server/{name}" for name in contents.serving.servers} | {
        f"model/{name}" for name in contents.serving.models
    }
    assert usable | contents.faults.keys() == {key for key, one in contents.entries.items() if not one.removed}
    assert not usable & contents.faults.keys()


@given(st.lists(SETTINGS, min_size=1, max_size=5))
def test_a_change_is_refused_or_gives_what_was_wanted(wishes: list[dict[str, dict[str, object] | None]]) -> None:
    """A change that is taken contradicts nothing, and a second time it changes nothing."""
    contents = folded([])
    for number, wanted in enumerate(wishes):
        try:
            entries = changes.planned(contents, wanted, author="k", at=number)
        except ValueError:
            continue
        differences = changes.differences(contents, entries)
        assert len(differences) == len(entries)
        contents = written(contents, entries)
        assert not contents.faults
        for key, settings in wanted.items():
            found = contents.entries.get(key)
            if settings is None:
                assert found is None or found.removed
            else:
                assert found is not None
                assert catalog.checked(key, found.settings) == catalog.checked(key, settings)
        assert changes.planned(contents, wanted, author="other", at=9) == {}


def test_a_change_parses_no_other_entry() -> None:
    """With ten thousand entries that would take half a second."""
    fold = Fold()
    for number, name in enumerate("ab"):
        fold.put(
            f"{SERVER}{name}", Entry(settings={"url": f"http://{name}/v1"}, author="k", at=0, revision=number)
        )
    before = fold.contents()
    after = Fold.of(before)
    after.apply(f"{SERVER}a", b'{"settings": {"url": "http://c/v1"}, "author": "k", "at": 1}', 2)
    now = after.contents().serving.servers
    assert now["b"] is before.serving.servers["b"]
    assert (now["a"].base, before.serving.servers["a"].base) == ("http://c/v1", "http://a/v1")


def test_a_file_takes_away_only_what_a_file_brought() -> None:
    """A server that was added while it ran stays, a changed setting is set back, and a price stays known."""
    settings = Settings(
        servers={"a": {"url": "http://a/v1"}},
        models={
            "m": {"servers": ["a"], "price": {"input_per_million": 2}},
            "n": {"backends": [{"url": "http://n/v1"}]},
        },
    )
    file = catalog.settings_by_key(settings.servers, settings.models)
    contents = written(folded([]), changes.of_settings(folded([]), file, author=FILE, at=1))
    assert {*contents.serving.servers} == {"a", "n:80"}
    live: changes.Wanted = {
        "server/b": {"url": "http://b/v1"},
        "server/a": {"url": "http://a/v1", "max_in_flight": 1},
    }
    contents = written(contents, changes.planned(contents, live, author="k", at=2))
    smaller = catalog.settings_by_key(settings.servers, {"n": settings.models["n"]})
    entries = changes.of_settings(contents, smaller, author=FILE, at=3)
    assert {key: entry.removed for key, entry in entries.items()} == {"model/m": True, "server/a": False}
    contents = written(contents, entries)
    assert {*contents.serving.servers} == {"a", "b", "n:80"}
    assert contents.serving.servers["a"].max_in_flight is None
    assert contents.entries["model/m"].removed
    assert contents.price_of("m").input_per_million == 2


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize(
    "fault", [{"endpoints": ["/v1/mine"]}, {"max_in_flight": 20_000}, {"servers": []}, {"servers": ["gone"]}]
)
def test_the_price_of_a_model_that_cannot_be_used_stays_known(fault, removed):
    """A batch of it that ends now pays it all the same."""
    settings = {"servers": ["a"], "price": {"output_per_million": "3"}, **fault}
    contents = folded([("model/m", value(settings, removed=removed), 0)])
    assert contents.serving.models == {}
    assert contents.price_of("m").output_per_million == 3


@pytest.mark.parametrize("price", [{"input_per_million": "x"}, {"per_second": "1"}, None, []])
def test_a_price_that_cannot_be_read_is_not_zero(price):
    """A record of another version may have it; a model without a record costs nothing."""
    contents = folded([("model/m", value({"servers": ["a"], "price": price}), 0)])
    with pytest.raises(PriceError, match="the price of the model m cannot be read"):
        contents.price_of("m")
    assert contents.price_of("n") == contents.price_of(None) == Price()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"server/a": None}, "servers.a: models.m, models.m.1 name it; change or remove them first"),
        ({"server/a": {"url": "x"}}, "servers.a.url: "),
        ({"server/b": {"url": "http://a/v1"}}, "servers.b: it has the address and the key of servers.a"),
        ({"server/b": {"url": "http://b/v1", "key": "x"}}, "servers.b: unknown setting key"),
        (
            {"server/b": {"url": "http://b/v1", "models_like": "m.2"}},
            "servers.b.models_like: there is no model m.2, but m.1",
        ),
        ({"model/o": {"servers": ["b"]}}, "models.o.servers: there is no server b"),
        ({"model/o": {"servers": ["a"], "aliases": ["m"]}}, "models.o.aliases: m is the name of a model already"),
        ({"model/o": {"servers": ["a"], "upstream_model": "a\x00b"}}, "models.o.upstream_model: it has a control"),
        (
            {"model/m_1": {"servers": ["a"]}},
            "models.m_1: Kafka cannot have its topics besides those of models.m.1",
        ),
    ],
)
def test_a_contradiction_names_the_setting(wanted: changes.Wanted, said: str) -> None:
    """And nothing is written."""
    settings: changes.Wanted = {
        "server/a": {"url": "http://a/v1"},
        "model/m": {"servers": ["a"]},
        "model/m.1": {"servers": ["a"]},
    }
    contents = written(folded([]), changes.planned(folded([]), settings, author="k", at=1))
    with pytest.raises(ValueError, match=r"^") as refused:
        changes.planned(contents, wanted, author="k", at=2)
    assert str(refused.value).startswith(said)


def test_settings_survive_the_topic() -> None:
    """Those of every kind, with times, decimals and files that this machine does not have."""
    text = """
    [servers.a]
    url = "https://a/v1"
    api_key_env = "A_KEY"
    ca_file = "/none/ca.pem"
    hours = [{ from = "22:00", to = "06:30", days = [1, 7], max_in_flight = 4 }]
    metrics = false
    [models."org/m"]
    servers = ["a"]
    price = { input_per_million = "0.1", output_per_million = "2" }
    body_defaults = { chat_template_kwargs = { enable_thinking = false } }
    """
    settings = Settings(**tomllib.loads(text))
    contents = written(
        folded([]),
        changes.of_settings(
            folded([]), catalog.settings_by_key(settings.servers, settings.models), author=FILE, at=1
        ),
    )
    assert contents.serving == settings.serving
    assert contents.serving.servers["a"].lack == "the variable A_KEY is not set"


def test_what_another_version_wrote_does_no_harm() -> None:
    """Unknown settings are ignored, and an entry that is not valid is left out."""
    records: list[tuple[str, bytes | None, int]] = [
        ("server/a", value({"url": "http://a/v1", "of_tomorrow": 1}), 0),
        ("server/b", value({"url": 7}), 1),
        (FILE, Applied(digest="d", author=FILE, at=1).model_dump_json().encode(), 2),
    ]
    contents = folded(records)
    assert {*contents.serving.servers} == {"a"}
    assert {*contents.faults} == {"server/b"}
    assert contents.applied is not None
    for key, content in (("server/a", b"{"), ("else", b"{}"), ("server/", value({})), ("model/\n", value({}))):
        with pytest.raises(ValueError, match=r"^"):
            Fold().apply(key, content, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "http://a/v1", "headers": {"a": "b\r\nc: d"}},
        {"url": "http://a/v1", "api_key_env": "A\0"},
        {"url": "http://a/v1", "ca_file": "a" * 5000},
        {"url": "http://a..b/v1"},
        {"url": "http://a/v1", "metrics": f"http://{'a' * 64}/metrics"},
    ],
)
def test_a_record_is_checked_like_a_change(settings: dict[str, object]) -> None:
    """What the API refuses is left out with the reason, too, if a producer writes it to the topic itself."""
    with pytest.raises(ValueError, match=r"^servers\.a\."):
        catalog.checked("server/a", settings)
    contents = folded([("server/a", value(settings), 0)])
    assert {*contents.faults} == {"server/a"}
    assert not contents.serving.servers


FILE_OF_API: dict[str, dict[str, object]] = {
    "server/a": {"url": "http://a/v1"},
    "server/b": {"url": "http://b/v1"},
    "model/m": {"servers": ["a"]},
}


def test_a_file_that_waits_for_an_apply_is_named() -> None:
    """A command alone is no difference, nor a file without models, nor another one that says the same."""
    entries = changes.of_settings(folded([]), FILE_OF_API, author=FILE, at=1)
    applied = Applied(digest=fingerprint_of(FILE_OF_API), author=FILE, at=1)
    contents = replace(written(folded([]), entries), applied=applied)
    assert changes.waiting(contents, FILE_OF_API) == ""
    command = changes.planned(contents, {"server/a": {"url": "http://a/v1", "drain": True}}, author="k", at=2)
    by_command = replace(written(contents, command), applied=applied)
    assert changes.waiting(by_command, FILE_OF_API) == ""
    later = {**FILE_OF_API, "server/a": {"url": "http://a/v1", "max_in_flight": 3}}
    del later["server/b"]
    assert changes.waiting(by_command, later) == "the settings file is not applied to server/a, server/b"
    assert changes.waiting(contents, {}) == ""
    other = Applied(digest="other", author="k", at=3)
    assert changes.waiting(replace(contents, applied=other), FILE_OF_API) == ""
    assert changes.waiting(folded([]), FILE_OF_API) == ""
    wrong = {**FILE_OF_API, "model/m": {"servers": ["none"]}}
    assert "there is no server none" in changes.waiting(contents, wrong)


def test_each_record_that_contradicts_another_is_left_out_alone() -> None:
    """In one pass: a server stays that contradicts only one which is left out, and a short form is no record."""
    certificate: dict[str, object] = {"url": "http://a/v1", "client_cert_file": "c.pem"}
    contents = folded([
        ("server/first", value({"url": "http://a/v1", "api_key_env": "A"}), 0),
        ("server/other", value(certificate), 1),
        ("server/same", value({"url": "http://a/v1"}), 2),
        ("model/short", value({"backends": [certificate]}), 3),
        ("model/m", value({"servers": ["other"]}), 4),
        ("model/n", value({"servers": ["same"], "aliases": ["m"]}), 5),
        ("model/n_1", value({"servers": ["same"], "aliases": ["m"]}), 6),
        ("model/n.1", value({"servers": ["same"]}), 7),
        ("model/n_1.x", value({"servers": ["same"]}), 8),
        ("model/n.1_x", value({"servers": ["same"]}), 9),
    ])  # fmt: skip
    assert {*contents.faults} == {"server/other", "model/short", "model/m", "model/n_1", "model/n.1_x"}
    assert contents.serving.by_model == dict.fromkeys(("n", "n.1", "n_1.x"), ("same",))
    assert contents.serving.aliases == {"m": "n"}


@pytest.mark.parametrize("name", ["a" * 300, "none/ca.pem", "/dev/zero", "/proc/self/mem/x"])
def test_a_file_that_cannot_be_read_is_missing(name: str) -> None:
    """A name raises nothing, and what is no file is not opened: it may never end."""
    server = Server(url="http://a/v1", ca_file=name)
    assert server.lack == f"{name} is not there, or cannot be read"


def test_what_a_server_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is looked up anew each time, so that a file may come later; a key never gets into the catalog."""
    file = tmp_path / "ca.pem"
    server = Server(url="http://a/v1", api_key_env="A_KEY", ca_file=file)
    assert server.lack == "the variable A_KEY is not set"
    monkeypatch.setenv("A_KEY", "secret")
    assert server.lack == f"{file} is not there, or cannot be read"
    trustme.CA().cert_pem.write_to_path(file)
    assert server.lack is None
    assert server.api_key == "secret"
    assert "secret" not in str(catalog.settings_by_key({"a": server}, {"m": Model(servers=("a",))}))
