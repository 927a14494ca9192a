"""Commands at the address of another service, which answers every request with JSON of its own."""

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from support.service import KEY

from tidemill.client import batches, catalog, errors, keys, reports, reruns, webhooks
from tidemill.client.errors import Exit, OtherService
from tidemill.client.http.answer import Answer, plain
from tidemill.client.http.client import Client
from tidemill.client.library.asynchronous import AsyncTidemill
from tidemill.client.production import Token
from tidemill.client.runs.paths import Sink
from tidemill.terminal import Console

CONSOLE = Console(quiet=True)
COMMANDS = {
    "list": lambda client: batches.show(client, limit=1, as_json=False),
    "watch": lambda client: batches.watch(CONSOLE, client, "batch_1", Sink()),
    "cancel": lambda client: batches.cancel(CONSOLE, client, "batch_1"),
    "top": lambda client: reports._overview(client, 100),
    "usage": lambda client: reports.show_usage(client, {}, as_csv=False, as_json=False),
    "audit": lambda client: reports.show_audit(client, {}, limit=1, as_json=False),
    "servers list": lambda client: catalog.list_servers(client, as_json=False),
    "servers show": lambda client: catalog.show(client, "servers", "a", as_json=False),
    "servers add": lambda client: catalog.add(CONSOLE, client, "servers", "a", []),
    "servers set": lambda client: catalog.change(CONSOLE, client, "servers", "a", {}, done=""),
    "servers test": lambda client: catalog.test(CONSOLE, client, "servers", "a"),
    "models list": lambda client: catalog.list_models(client, as_json=False),
    "keys list": lambda client: keys.show(client, project=None, as_json=False),
    "keys create": lambda client: keys.create(
        CONSOLE, client, name="a", project=None, role="read", life_seconds=None
    ),
    "keys token": lambda client: keys.token(CONSOLE, client, stream="a", life_seconds=1),
    "webhooks list": lambda client: webhooks.show_all(client, as_json=False),
    "webhooks show": lambda client: webhooks.show(client, "we_1", as_json=False),
    "webhooks create": lambda client: webhooks.create(CONSOLE, client, url="https://a", name="", types=()),
    "webhooks test": lambda client: webhooks.test(CONSOLE, client, "we_1", "batch.completed"),
    "webhooks deliveries": lambda client: webhooks.deliveries(client, "we_1", only=None, limit=1, as_json=False),
    "rerun": lambda client: reruns.create(CONSOLE, client, "batch_1", {}, Sink()),
    "rerun --dry-run": lambda client: reruns.create(CONSOLE, client, "batch_1", {}, Sink(), dry_run=True),
    "produce": lambda client: Token(client, "a").header(),
}
ANSWERS = [
    {},
    {"object": "list", "data": None},
    {"object": "list", "data": ["m"], "has_more": False},
    {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "vllm"}], "has_more": False},
]


@pytest.fixture
async def other():
    """Makes the address of a service that gives one answer to every request."""
    servers = []

    async def at(answer):
        async def respond(request):
            await request.read()
            return web.json_response(answer)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", respond)
        server = TestServer(app)
        servers.append(server)
        await server.start_server()
        return str(server.make_url("/v1"))

    yield at
    for server in servers:
        await server.close()


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("command", COMMANDS)
async def test_a_command_names_the_other_service(other, command, answer):
    """Whatever it needs of the answer."""
    async with Client(await other(answer), KEY) as client:
        with pytest.raises(OtherService, match=r"http://127.0.0.1:\d+ does not speak the Batch API: 200 at /v1/"):
            await COMMANDS[command](client)


async def test_the_library_names_the_other_service(other):
    """With the error that it has for a wrong address."""
    async with AsyncTidemill(await other(ANSWERS[-1]), KEY) as client:
        for reading in (client.batches().__anext__, lambda: client.batch("batch_1")):
            with pytest.raises(OtherService, match="does not speak the Batch API: 200 at /v1/batches"):
                await reading()


def test_the_command_ends_with_the_code_of_a_wrong_usage():
    """The message says what the object lacks, and what to check."""
    console = Console(record=True, width=200)

    async def command():
        async def respond(_):
            return web.json_response({"data": [{"id": "m"}]})

        app = web.Application()
        app.router.add_get("/v1/models", respond)
        async with TestServer(app) as server, Client(str(server.make_url("/v1")), KEY) as client:
            return await catalog.list_models(client, as_json=False)

    assert errors.run(console, command) is Exit.USAGE
    said = console.export_text()
    assert "does not speak the Batch API: 200 at /v1/models, without tidemill" in said
    assert "--base-url" in said


def test_what_users_get_is_plain():
    """A field that a reply of a model lacks is a `KeyError` for them, and no fault of the service."""
    place = 200, "http://h", "/v1/batches/batch_1/results"
    inner = Answer({"choices": [Answer({"text": "a"}, *place)]}, *place)
    found = plain(Answer({"body": inner, "error": None}, *place))
    assert found == {"body": {"choices": [{"text": "a"}]}, "error": None}
    assert {type(found), type(found["body"]), type(found["body"]["choices"][0])} == {dict}
