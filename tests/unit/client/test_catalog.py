"""Words of the commands below `servers` and `models`, and the lines that show a change."""

import json
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from support.backend import Backend, Behaviour

from tidemill.client import catalog, webhooks
from tidemill.client.errors import Exit, UsageError
from tidemill.client.http.client import Client

NAMES = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
VALUES = st.recursive(
    st.booleans() | st.integers(-9, 9) | st.text("ab:/=\" #'é", max_size=8),
    lambda items: st.lists(items, max_size=3),
    max_leaves=4,
)


@given(NAMES, VALUES)
def test_a_value_is_toml(name, value):
    """Truth, a number, quoted text, or a list of them."""
    text = json.dumps(value, ensure_ascii=False)
    assert catalog.parsed([f"{name}={text}"]) == {name: value}


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("url=http://a:1/v1?x=1", {"url": "http://a:1/v1?x=1"}),
        ("url=", {"url": None}),
        ("drain=true", {"drain": True}),
        ('servers=["a", "b"]', {"servers": ["a", "b"]}),
        ("upstream_model=adapter-7", {"upstream_model": "adapter-7"}),
    ],
)
def test_a_value_that_is_no_toml_is_text(word, found):
    """So an address or a name needs no quotes; without a value, the default."""
    assert catalog.parsed([word]) == found


@pytest.mark.parametrize("word", ["url", "=1", ""])
def test_a_word_without_a_name_is_refused(word):
    """With an example."""
    with pytest.raises(UsageError, match="is not of the form NAME=VALUE, like max_in_flight=64"):
        catalog.parsed([word])


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["max_in_flight=1", "max_in_flight=2"], "max_in_flight is given twice"),
        (["headers=" + "[" * 3_000], "headers: it is nested too deeply"),
        (["max_in_flight=" + "9" * 5_000], "max_in_flight: a number has too many digits"),
    ],
)
def test_words_that_cannot_be_meant_are_refused(words, fault):
    """By name."""
    with pytest.raises(UsageError, match=fault):
        catalog.parsed(words)


def test_a_difference_is_a_line_for_each_setting():
    """With what was and what will be."""
    found = [
        {"key": "model/m", "before": None, "after": {"servers": ["a"]}},
        {"key": "server/a", "before": {"share": 0.5}, "after": {"max_in_flight": 4}},
        {"key": "server/b", "before": {"url": "http://b/v1"}, "after": None},
    ]
    assert list(catalog.differences(found)) == [
        '+ model/m: {"servers":["a"]}',
        "~ server/a: max_in_flight: default -> 4",
        "~ server/a: share: 0.5 -> default",
        "- server/b",
    ]


@pytest.mark.parametrize(("settings", "shown"), [({}, ""), ({"url": 7}, "7")])
def test_a_server_that_cannot_be_used_is_listed(settings, shown):
    """Whatever its record has in place of an address."""
    server = {"id": "a", "settings": settings, "used_by": [], "fault": "url: missing"}
    assert catalog.row_of(server) == ["a", shown, "", "", "url: missing"]


@pytest.mark.parametrize(("reason", "shown"), [("server_unreachable", "a cannot be reached."), ("queued", "")])
def test_a_server_that_is_down_is_listed_with_the_cause(reason, shown):
    """As `top` says it; one that works needs no words."""
    cause = {"reason": reason, "message": "a cannot be reached."}
    server = {"id": "a", "settings": {}, "used_by": ["m"], "fault": None, "load": {"cause": cause}}
    assert catalog.row_of(server)[-1] == shown
    assert catalog.row_of({**server, "load": None})[-1] == ""


@pytest.mark.parametrize(
    "value", ["2024-10-21", "{ api-version = 2024-10-21 }", "[07:32:00]", "2024-10-21T07:32:00Z"]
)
def test_a_date_is_refused_by_name(tmp_path, value):
    """TOML has dates, and JSON has none."""
    with pytest.raises(UsageError, match=r"^headers.*: a date or a time is text here; put it in quotes"):
        catalog.parsed([f"headers={value}"])
    if value.startswith("{"):
        file = tmp_path / "tidemill.toml"
        file.write_text(f"[servers.gpu]\nheaders = {value}\n")
        with pytest.raises(UsageError, match=r"tidemill.toml: servers.gpu.headers.api-version: a date"):
            catalog._tables(file)


GOOD = "[servers.g]\nurl = 'http://a:8000/v1'\n[models.m]\nservers = ['g']\n"


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (
            GOOD.replace("models.", "model.").replace("servers.", "serves."),
            ["unknown setting serves, did you mean servers?", "unknown setting model, did you mean models?"],
        ),
        (GOOD + "[models.llama3.1]\nservers = ['g']\n", ["models.llama3.1: a name with a dot needs quotes: "]),
        (GOOD + "[limits]\nx = inf\n", ["limits.x: it must be a number within"]),
    ],
)
async def test_a_misspelt_file_is_not_applied(console, tmp_path, text, faults):
    """Its servers and models would seem to be gone; the service hears nothing."""
    file = tmp_path / "tidemill.toml"
    file.write_text(text)
    async with answering({}) as client:
        with pytest.raises(UsageError) as caught:
            await catalog.apply(console, client, file, dry_run=False)
    found = str(caught.value).split("\n")
    assert len(found) == len(faults)
    for fault, beginning in zip(found, faults, strict=True):
        assert fault.startswith(f"{file}: {beginning}")


@pytest.mark.parametrize("text", ["", "port = 1\n", "[servers]\n[models]\n"])
async def test_an_empty_file_needs_a_flag(console, tmp_path, text):
    """It would remove everything."""
    file = tmp_path / "tidemill.toml"
    file.write_text(text)
    async with answering({"/v1/admin/apply": {"changes": [], "warnings": []}}) as client:
        with pytest.raises(UsageError, match=r"neither servers nor models; --allow-empty removes"):
            await catalog.apply(console, client, file, dry_run=True)
        assert await catalog.apply(console, client, file, dry_run=True, allow_empty=True) is Exit.OK


@asynccontextmanager
async def answering(answers):
    """A client of a service that answers each path with an object."""

    async def answer(request):
        return web.json_response(answers[request.path])

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with Client(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "sk-1") as client:
            yield client
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(("status", "end"), [(200, Exit.OK), (500, Exit.INEXACT)])
async def test_a_test_call_ends_with_its_outcome(console, status, end):
    """Of a server, and of a model that has a good one, too."""
    with Backend() as good, Backend() as other:
        other.rule = lambda *_: Behaviour(status=status)
        answers = {
            "/v1/admin/servers/good": {"settings": {"url": good.url}, "used_by": ["m"]},
            "/v1/admin/servers/other": {"settings": {"url": other.url}, "used_by": ["m"]},
            "/v1/admin/models/m": {"settings": {"servers": ["good", "other"]}, "used_by": ["good", "other"]},
        }
        async with answering(answers) as client:
            assert await catalog.test(console, client, "servers", "other") is end
            assert await catalog.test(console, client, "models", "m") is end


async def test_a_test_call_that_is_refused_says_why(console):
    """In the server's words, wherever its body has them."""
    with Backend() as server:
        server.rule = lambda *_: Behaviour(status=422, body=b'{"detail":[{"msg":"field required"}]}')
        answers = {
            "/v1/admin/servers/one": {"settings": {"url": server.url}, "used_by": ["m"]},
            "/v1/admin/models/m": {"settings": {"servers": ["one"]}, "used_by": ["one"]},
        }
        async with answering(answers) as client:
            await catalog.test(console, client, "servers", "one")
    assert "one: m, /v1/chat/completions: 422 field required (" in console.export_text()


@pytest.mark.parametrize("used_by", [[], ["m"]])
async def test_a_test_of_a_server_with_a_malformed_key_names_it(console, monkeypatch, used_by):
    """With the variable and without a traceback; no request is made."""
    monkeypatch.setenv("TIDEMILL_KEY_G", "hush hush")
    answers = {
        "/v1/admin/servers/g": {
            "settings": {"url": "http://127.0.0.1:1/v1", "api_key_env": "TIDEMILL_KEY_G"}, "used_by": used_by,
        },
        "/v1/admin/models/m": {"settings": {"servers": ["g"]}, "used_by": ["g"]},
    }  # fmt: skip
    async with answering(answers) as client:
        assert await catalog.test(console, client, "servers", "g") is Exit.INEXACT
    said = console.export_text()
    assert "g: the variable TIDEMILL_KEY_G has a space or a character that is not ASCII" in said
    assert "hush" not in said


async def test_a_test_of_a_server_that_is_away_fails(console):
    """Whether a model names it or not."""
    away = {"url": "http://127.0.0.1:9/v1"}
    answers = {
        "/v1/admin/servers/a": {"settings": away, "used_by": ["m"]},
        "/v1/admin/servers/b": {"settings": away, "used_by": []},
        "/v1/admin/models/m": {"settings": {"servers": ["a"]}, "used_by": ["a"]},
    }
    async with answering(answers) as client:
        for name in ("a", "b"):
            assert await catalog.test(console, client, "servers", name) is Exit.INEXACT


@pytest.mark.parametrize(("status", "end"), [(204, Exit.OK), (410, Exit.INEXACT)])
async def test_a_test_of_a_webhook_ends_with_the_reply(console, status, end):
    """As the service reports it."""
    async with answering({"/v1/webhook_endpoints/we_1/test": {"status_code": status}}) as client:
        assert await webhooks.test(console, client, "we_1", "batch.completed") is end
