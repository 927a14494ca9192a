"""Servers and models, changed over the API: each answer, each refusal, and what every process reads afterwards."""

import os

import pytest
from support.backend import Backend
from support.dependencies import NOW, open_dependencies

from tidemill.configuration.settings import Settings
from tidemill.schemas.bounds import NAME_CHARS_MAX

URL = "http://127.0.0.1:9/v1"
OTHER = "http://127.0.0.1:7/v1"
"""No server listens at either."""
SETTINGS = Settings(
    servers={"gpu-1": {"url": URL, "max_in_flight": 64}},
    models={
        "org/m": {"servers": ["gpu-1"], "aliases": ["m"]},
        "short": {"backends": [{"url": "http://127.0.0.1:1/v1"}]},
    },
)


@pytest.fixture
async def deps(tmp_path):
    async with open_dependencies(tmp_path, settings=SETTINGS) as deps:
        yield deps


async def test_a_server_from_its_addition_to_its_removal(deps, operator):
    """Each answer shows the settings, the author, the time and the revision; a warning stops nothing."""
    added = await operator.put("/admin/servers/gpu-2", json={"settings": {"url": OTHER, "share": 0.5}})
    assert added.status_code == 200
    body = added.json()
    assert body.pop("warnings") == ["server gpu-2 (http://127.0.0.1:7/v1): Connection refused"]
    assert body == {
        "id": "gpu-2", "object": "server", "settings": {"url": OTHER, "share": 0.5},
        "removed": False, "fault": None, "used_by": [], "author": "key_settings", "changed_at": NOW,
        "revision": deps.catalog.contents.revision, "load": None,
    }  # fmt: skip
    assert deps.serving.servers["gpu-2"].share == 0.5
    drained = (
        await operator.patch("/admin/servers/gpu-2", json={"settings": {"drain": True, "share": None}})
    ).json()
    assert drained["settings"] == {"url": OTHER, "drain": True}
    assert drained["revision"] > body["revision"]
    listed = (await operator.get("/admin/servers")).json()
    assert [one["id"] for one in listed["data"]] == ["127.0.0.1:1", "gpu-1", "gpu-2"]
    assert [one["used_by"] for one in listed["data"]] == [["short"], ["org/m"], []]
    page = (await operator.get("/admin/servers", params={"limit": 1, "after": "127.0.0.1:1"})).json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (["gpu-1"], True)
    assert (await operator.delete("/admin/servers/gpu-2")).json()["removed"]
    assert "gpu-2" not in deps.serving.servers
    assert (await operator.get("/admin/servers/gpu-2")).json()["removed"]
    assert (await operator.delete("/admin/servers/gpu-2")).status_code == 404


async def test_a_model_is_paused_resumed_and_removed(deps, operator):
    """Its name may have slashes; everyone who may list models sees its state."""
    paused = await operator.patch("/admin/models/org/m", json={"settings": {"paused": True}})
    assert paused.json()["settings"] == {"aliases": ["m"], "servers": ["gpu-1"], "paused": True}
    shown = (await operator.get("/models/m", headers={"authorization": "Bearer key-of-p"})).json()
    assert shown["tidemill"]["paused"]
    await operator.patch("/admin/models/org/m", json={"settings": {"paused": None}})
    assert not deps.serving.models["org/m"].paused
    await operator.delete("/admin/models/org/m")
    assert (await operator.get("/models/m")).status_code == 404
    assert deps.catalog.contents.entries["model/org/m"].removed


async def test_a_model_with_the_longest_name(deps, operator):
    """It is added, and the audit trail names it."""
    name = "m" * NAME_CHARS_MAX
    added = await operator.put(f"/admin/models/{name}", json={"settings": {"servers": ["gpu-1"]}})
    assert added.status_code == 200
    assert name in deps.serving.models


async def test_a_model_of_the_short_form_brings_its_server(deps, operator):
    """Under the name of its address."""
    added = await operator.put(
        "/admin/models/new", json={"settings": {"backends": [{"url": "http://127.0.0.1:2/v1"}]}}
    )
    assert added.json()["settings"] == {"servers": ["127.0.0.1:2"]}
    assert deps.serving.servers["127.0.0.1:2"].base == "http://127.0.0.1:2/v1"


@pytest.mark.parametrize(
    ("wanted", "param", "said"),
    [
        (("DELETE", "servers/gpu-1", None), "servers.gpu-1", "models.org/m name it; change or remove them first"),
        (("PUT", "servers/x", {"url": "ftp://a"}), "servers.x.url", "URL scheme should be 'http' or 'https'"),
        (("PUT", "servers/x", {}), "servers.x.url", "missing"),
        (("PUT", "servers/x", {"url": URL}), "servers.x", "it has the address and the key of servers.gpu-1"),
        (("PUT", "servers/x", {"url": "http://x/v1", "shar": 1}), "servers.x", "unknown setting shar, did"),
        (("PUT", "servers/x", {"url": "http://x/v1", "headers": {"a": "\n"}}), "servers.x.headers.a", "control"),
        (("PUT", "servers/gpu@10.0.0.7", {"url": OTHER}), "servers.gpu@10.0.0.7", "match pattern"),
        (("PUT", "models/%20m", {"servers": ["gpu-1"]}), "models. m", "match pattern"),
        (("PUT", "servers/x", {"url": "http://a..b/v1"}), "servers.x.url", "host name has an empty part"),
        (("PATCH", "servers/gpu-1", {"api_key_env": "AWS_SECRET_KEY"}), "servers.gpu-1.api_key_env", "begins"),
        (("PATCH", "servers/gpu-1", {"max_in_flight": 0}), "servers.gpu-1.max_in_flight", "greater than"),
        (("PUT", "models/x", {"servers": ["gpu-9"]}), "models.x.servers", "there is no server gpu-9, but gpu-1"),
        (("PUT", "models/x", {"servers": ["gpu-1"], "aliases": ["m"]}), "models.x.aliases", "m is the name of"),
        (("PUT", "models/m", {"servers": ["gpu-1"]}), "models.org/m.aliases", "m is the name of a model already"),
    ],
)  # fmt: skip
async def test_a_contradiction_is_refused(deps, operator, wanted, param, said):
    """With the setting and the reason, and nothing changes."""
    before = deps.catalog.contents
    method, path, settings = wanted
    content = {} if settings is None else {"json": {"settings": settings}}
    answer = await operator.request(method, f"/admin/{path}", **content)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, "invalid_settings")
    assert said in error["message"]
    assert deps.catalog.contents == before
    assert not deps.log.trail


async def test_a_file_that_never_ends_is_not_read(operator, tmp_path):
    """An address with a certificate authority is probed only with one that is a file."""
    pipe = tmp_path / "ca.pem"
    os.mkfifo(pipe)
    added = await operator.put(
        "/admin/servers/x", json={"settings": {"url": "https://127.0.0.1:9/v1", "ca_file": str(pipe)}}
    )
    assert added.json()["warnings"] == [
        f"server x (https://127.0.0.1:9/v1): {pipe} is not there, or cannot be read"
    ]
    wrong = await operator.post("/admin/apply", json={"servers": {"a b": {"url": OTHER}}})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "servers.a b")


async def test_only_the_revision_that_was_read_is_changed(deps, operator):
    """A second writer with the old one gets a 412."""
    await operator.put("/admin/servers/gpu-2", json={"settings": {"url": OTHER}})
    await operator.patch("/admin/servers/gpu-1", json={"settings": {"max_in_flight": 1}})
    revision = (await operator.get("/admin/servers/gpu-1")).json()["revision"]
    for code in (200, 412):
        answer = await operator.patch(
            "/admin/servers/gpu-1", json={"settings": {"max_in_flight": code}}, headers={"if-match": str(revision)}
        )
        assert answer.status_code == code
    assert deps.serving.servers["gpu-1"].max_in_flight == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
async def test_only_an_operator_may(operator, method):
    """A writer sees and changes nothing, not even whether a server exists."""
    headers = {"authorization": "Bearer key-of-p"}
    for name in ("gpu-1", "none"):
        content = {"json": {"settings": {}}} if method in {"PUT", "PATCH"} else {}
        answer = await operator.request(method, f"/admin/servers/{name}", headers=headers, **content)
        assert answer.status_code == 403


async def test_a_file_is_applied_once_it_is_meant(deps, operator):
    """A dry run shows the same changes and makes none; entries that commands added stay."""
    file = {"servers": {"gpu-1": {"url": URL, "max_in_flight": 32}}, "models": {"org/m": {"servers": ["gpu-1"]}}}
    await operator.post(
        "/admin/apply", json={"servers": {"gpu-1": {"url": URL}}, "models": {"short": {"servers": ["gpu-1"]}}}
    )
    await operator.put("/admin/servers/mine", json={"settings": {"url": "http://127.0.0.1:3/v1"}})
    before = deps.catalog.contents
    planned = (await operator.post("/admin/apply", json={**file, "dry_run": True})).json()
    assert deps.catalog.contents == before
    applied = (await operator.post("/admin/apply", json=file)).json()
    assert applied["changes"] == planned["changes"]
    assert {one["key"]: (one["before"], one["after"]) for one in applied["changes"]} == {
        "model/org/m": ({"aliases": ["m"]}, {}),
        "model/short": ({"servers": ["gpu-1"]}, None),
        "server/gpu-1": ({}, {"max_in_flight": 32}),
    }
    assert {*deps.serving.servers} == {"gpu-1", "mine", "127.0.0.1:1"}
    assert (await operator.post("/admin/apply", json=file)).json()["changes"] == []
    added = (await operator.post("/admin/apply", json={"servers": {"gpu-2": {"url": OTHER}}})).json()
    assert added["warnings"] == [f"server gpu-2 ({OTHER}): Connection refused"]
    wrong = await operator.post("/admin/apply", json={"servers": {"a": {"url": "x"}}})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "servers.a.url")


async def test_a_dry_run_warns_of_what_would_be(operator):
    """Of servers that the file adds, also for models that move to them, and not of those that it leaves."""
    with Backend() as good:
        good.lists = ("org/m", "other")
        file = {
            "servers": {"new": {"url": good.url}, "away": {"url": OTHER}},
            "models": {
                "org/m": {"servers": ["new"]},
                "other": {"servers": ["new"]},
                "third": {"servers": ["new", "away"]},
            },
        }
        planned = (await operator.post("/admin/apply", json={**file, "dry_run": True})).json()
        applied = (await operator.post("/admin/apply", json=file)).json()
    assert planned["warnings"] == applied["warnings"]
    assert sorted(planned["warnings"]) == [
        f"server away ({OTHER}): Connection refused",
        "server new does not list third, for the model third",
    ]
