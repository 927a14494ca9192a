"""Servers and models in the settings."""

import pytest
from pydantic import ValidationError
from support.servers import configured

from tidemill.configuration.misconfigured import faults
from tidemill.configuration.settings import Settings

A = {"url": "http://a:8000/v1"}
B = {"url": "http://b/v1"}


def refused(**content: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Settings(**content)  # type: ignore[arg-type]
    return "\n".join(faults(caught.value))


def test_equal_entries_are_one_server() -> None:
    """Of several models, by address and key; a name comes from host, port and path."""
    models = {
        "m": {"backends": [A, {"url": "https://b/v1"}, {"url": "http://a:8000/team/v1"}]},
        "n": {"backends": [{"url": "http://a:8000/v1/"}]},
        "o": {"backends": [{**A, "api_key_env": "KEY"}]},
    }
    serving = Settings(models=models).serving  # type: ignore[arg-type]
    assert serving.by_model == {
        "m": ("a:8000", "b:443", "a:8000/team"), "n": ("a:8000",), "o": ("a:8000@KEY",),
    }  # fmt: skip
    assert serving.models_of("a:8000") == ["m", "n"]


def test_models_name_servers() -> None:
    """A server that no model names is allowed, and an equal entry of the short form is the named server."""
    settings = Settings(
        servers={"gpu-1": A, "spare": {"url": "http://b/v1"}},  # type: ignore[dict-item]
        models={"m": {"servers": ["gpu-1"]}, "n": {"backends": [A]}},  # type: ignore[dict-item]
    )
    assert settings.serving.by_model == {"m": ("gpu-1",), "n": ("gpu-1",)}
    assert settings.serving.models_of("spare") == []


@pytest.mark.parametrize(
    ("own", "models", "calls"),
    [(None, (None, None), 64), (None, (16, None), 16), (None, (16, 256), 256), (8, (16, 256), 8)],
)
def test_how_many_calls_a_server_may_have(
    own: int | None, models: tuple[int | None, int | None], calls: int
) -> None:
    """Its own number, or the largest of its models; a model's number bounds that model alone."""
    named = list(zip("mn", models, strict=True))
    settings = Settings(
        servers={"gpu-1": {**A, "max_in_flight": own}},  # type: ignore[dict-item]
        models={name: {"servers": ["gpu-1"], "max_in_flight": limit} for name, limit in named},  # type: ignore[misc]
    )
    servers = configured(settings.models, settings.servers)
    assert [server.calls_max for server in servers] == [calls]
    assert [servers.pools[name].calls_max for name in "mn"] == [limit or calls for limit in models]


def model(**settings: object) -> dict[str, object]:
    return {"models": {"m": settings, "n": {"backends": [B]}}}


def server(**settings: object) -> dict[str, object]:
    return {"servers": {"b": {**B, **settings}}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (model(servers=["gpu-2"]), "models.m.servers: there is no server gpu-2, but gpu-1"),
        (model(servers=["x"]), "models.m.servers: there is no server x"),
        (model(servers=["gpu-1", "gpu-1"]), "models.m.servers: gpu-1 is named twice"),
        (model(), "models.m: it names no server; write servers ="),
        (model(servers=["gpu-1"], backends=[A]), "models.m: it has both servers and backends"),
        (server(url="http://a:8000/v1/"), "servers.b: it has the address and the key of servers.gpu-1"),
        ({"servers": {"b b": B}}, "servers.b b.[key]: String should match pattern"),
        (model(backends=[{**A, "share": 0.5}]), "models.m.backends.0: servers.gpu-1 has the same address and key"),
        (model(backends=[{**B, "drain": True}]), "models.n.backends.0: models.m.backends.0 has the same address"),
        (model(backends=[A], aliases=["n"]), "models.m.aliases: n is the name of a model"),
        (model(backends=[A], aliases=["x", "x"]), "models.m.aliases: x is the name of models.m"),
        (model(backends=[A], body_forced={"model": "x"}), "models.m.body_forced: model: it cannot be set here"),
        (model(backends=[A], body_defaults={"stream": True}), "models.m.body_defaults: stream: it cannot be"),
        (model(backends=[A], prefix_bytes=64, inputs_per_call=2), "models.m: inputs_per_call: lines in groups by"),
        (server(headers={"Host": "x"}), "servers.b.headers: Tidemill sets host itself"),
        (server(headers={"a b": "x"}), "servers.b.headers: 'a b' cannot be the name"),
        (server(headers={"a": "ü"}), "servers.b.headers: the value of a is not ASCII"),
        (server(client_key_file="/"), "servers.b: client_key_file: it is the key"),
        (server(url="http://[::1]/v1", discover="dns"), "servers.b: discover: [::1] is an address"),
        (server(discover="dns", metrics="http://c/metrics"), "servers.b: discover: metrics are read from each"),
        (server(discover="dns", proxy="http://p:1"), "servers.b: discover: the proxy looks up the name"),
        (server(proxy="https://p:1"), "servers.b: proxy: expected an address like http://proxy:3128, but got"),
        (server(proxy="http://me:secret@p:1"), "servers.b.proxy: an address holds no name and no password"),
        (
            {"models": {"m.a": {"backends": [B]}, "m_a": {"backends": [B]}}},
            "models.m_a: Kafka cannot have its topics besides those of models.m.a",
        ),
        (
            {"models": {"m_a.b": {"backends": [B]}, "m.a_b": {"backends": [B]}}},
            "models.m.a_b: Kafka cannot have its topics besides those of models.m_a.b",
        ),
    ],
    ids=range(25),
)
def test_contradictions(content: dict[str, dict[str, object]], said: str) -> None:
    """Are refused at the start, with the place."""
    content = {**content, "servers": {"gpu-1": A, **content.get("servers", {})}}
    found = refused(**content)
    assert found.startswith(said)
    assert "\n" not in found


def test_connections_to_one_host_are_made_alike(tmp_path) -> None:
    """They are shared by the servers there."""
    servers = {"a": A, "b": {"url": "http://a:8000/b", "proxy": "http://p:1"}}
    assert refused(servers=servers) == "servers.b: servers.a has its host and port, and another proxy"
    (tmp_path / "cert.pem").write_text("")
    servers = {"a": A, "b": {"url": "http://a:8000/b", "client_cert_file": str(tmp_path / "cert.pem")}}
    assert refused(servers=servers).startswith("servers.b: servers.a has its host and port, and another client")
