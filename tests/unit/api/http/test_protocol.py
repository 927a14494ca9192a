"""Bounds of bodies after their answers, and of the memory of unread answers, on real sockets."""

import asyncio
import contextlib
import json
import re
import socket

import httpx
import pytest
from support.dependencies import open_dependencies, with_settings
from support.waiting import until

from tidemill import metrics
from tidemill.api.app import create_app
from tidemill.api.http import protocol, server
from tidemill.api.http.concurrency_gate import ConcurrencyGate
from tidemill.configuration.settings import Settings
from tidemill.runtime.listening import listen

MIB = 1 << 20
LINE = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"x"}}'
FILE = LINE + b"\n" * (16 * MIB)
SECONDS_MAX = 30
ORIGIN = "https://app.example.com"
KEY = {"authorization": "Bearer key-of-p"}
MANY = b"x: y\r\n" * (protocol.HEADERS_MAX + 1)


@pytest.fixture
async def deps(tmp_path):
    """New dependencies, with two places for large bodies; a project alone holds one."""
    async with open_dependencies(tmp_path) as deps:
        deps.gates.bodies = ConcurrencyGate("large requests", 2)
        yield deps


@pytest.fixture
def serving(deps):
    """The server of an API."""
    settings = Settings(cors_origins=(ORIGIN,))
    return server.Server(create_app(with_settings(deps, settings)), settings)


@pytest.fixture
async def address(serving):
    """The address of a served API."""
    with listen("127.0.0.1", 0) as listening:
        task = asyncio.create_task(serving.serve(sockets=[listening]))
        yield listening.getsockname()
        serving.should_exit = serving.force_exit = True
        await task


def closed(reason):
    """The number of connections closed for this reason."""
    return metrics.CONNECTIONS_CLOSED.labels(reason)._value.get()


@contextlib.asynccontextmanager
async def connected(address, request, *, receives_bytes=0):
    """A connection that has sent something, and reads on demand only."""
    loop = asyncio.get_running_loop()
    with socket.socket() as raw:
        raw.setblocking(False)
        if receives_bytes:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives_bytes)
        await loop.sock_connect(raw, address)
        await loop.sock_sendall(raw, request)
        yield raw


async def test_each_turn_of_the_loop_accepts_one_connection(address, monkeypatch):
    """So a flood of connections delays each step of a request by one at most."""
    turn, added, add = 0, [], server.Listener._add
    monkeypatch.setattr(server.Listener, "_add", lambda *given: added.append(turn) or add(*given))
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(socket.create_connection(address)).sendall(b"G")
        while len(added) < 50:
            await asyncio.sleep(0)
            turn += 1
    assert len(set(added)) == 50


async def test_a_body_after_its_answer_has_a_bound(address, monkeypatch):
    """A client without a key gets its 401 and cannot send a terabyte."""
    monkeypatch.setattr(protocol, "LATE_BYTES_MAX", 8 * MIB)
    loop, before = asyncio.get_running_loop(), closed("late")
    head = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\n\r\n"
    async with asyncio.timeout(SECONDS_MAX), connected(address, head) as raw:
        assert (await loop.sock_recv(raw, MIB)).startswith(b"HTTP/1.1 401")
        with pytest.raises(ConnectionError):
            await loop.sock_sendall(raw, bytes(64 * MIB))
    assert closed("late") == before + 1


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n", b"414"),
        (b"GET /livez HTTP/1.1\r\n" + MANY + b"\r\n", b"431"),
        (b"no HTTP\r\n", b"400"),
    ],
    ids=["URL", "headers", "no HTTP"],
)
async def test_a_refused_head_behind_a_late_body_is_answered(address, head, status):
    """The body of the request before it may arrive after that request's answer, with the head in one piece."""
    loop, late = asyncio.get_running_loop(), b"{}"
    first = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(late)
    async with asyncio.timeout(SECONDS_MAX), connected(address, first) as raw:
        assert (await loop.sock_recv(raw, MIB)).startswith(b"HTTP/1.1 401")
        await loop.sock_sendall(raw, late + head)
        assert (await loop.sock_recv(raw, MIB)).split()[1] == status


async def test_bodies_after_their_answers_share_a_rate(address, monkeypatch):
    """A client that sends all of it gets the answer and stays connected."""
    monkeypatch.setattr(protocol, "LATE_BYTES_PER_CHECK", MIB)
    checks, renew = [], protocol.LateBodies.renew
    monkeypatch.setattr(protocol.LateBodies, "renew", lambda late: (checks.append(late.left), renew(late)))
    async with (
        asyncio.timeout(SECONDS_MAX),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{address[1]}/v1", timeout=SECONDS_MAX) as client,
    ):
        await until(lambda: checks, "a check")
        answer = await client.post("/files", content=bytes(3 * MIB))
        assert answer.status_code == 401
        assert (await client.get("/files")).status_code == 401
    assert len([left for left in checks if left <= 0]) >= 2
    assert min(checks) > -MIB


async def test_few_large_bodies_are_read_concurrently(address, deps):
    """Others wait after their first bytes; small bodies and other projects go on."""
    lines = (
        "POST /v1/batches HTTP/1.1",
        "Host: localhost",
        "Authorization: Bearer key-of-p",
        "Content-Length: 900000",
    )
    request = "\r\n".join((*lines, "", "")).encode() + bytes(128 * 1024)
    async with (
        asyncio.timeout(SECONDS_MAX),
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{address[1]}/v1", headers=KEY, timeout=SECONDS_MAX
        ) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(4):
            await stack.enter_async_context(connected(address, request))
        await until(lambda: len(deps.gates.bodies._waiting.get("p", ())) == 3, "three wait")
        assert deps.gates.bodies._held == {"p": 1}
        assert (await client.post("/batches", content=b"{}")).status_code == 400
        other = {"authorization": "Bearer key-of-q"}
        assert (await client.post("/batches", content=bytes(900_000), headers=other)).status_code == 400
    await until(lambda: not deps.gates.bodies._held, "all have gone")


async def test_unread_answers_share_a_bound(address, serving, monkeypatch):
    """Clients that read nothing lose their connections; a reading client gets its whole answer."""
    monkeypatch.setattr(server, "UNSENT_BYTES_MAX", MIB)
    before = closed("unsent")
    async with (
        asyncio.timeout(SECONDS_MAX),
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{address[1]}/v1", headers=KEY, timeout=SECONDS_MAX
        ) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        made = await client.post("/files", data={"purpose": "batch"}, files={"file": ("f", FILE)})
        path = f"/files/{made.json()['id']}/content"
        lines = (f"GET /v1{path} HTTP/1.1", "Host: localhost", f"Authorization: {KEY['authorization']}", "", "")
        for _ in range(16):
            request = "\r\n".join(lines).encode()
            await stack.enter_async_context(connected(address, request, receives_bytes=4096))
        await until(lambda: closed("unsent") > before, "a slow reader closed")
        slow = serving.server_state.connections
        await until(
            lambda: all(one.seconds_left > 1 for one in slow if one.unsent_bytes), "the rates of the others known"
        )
        plain = {"accept-encoding": "identity"}
        assert len((await client.get(path, headers=plain)).content) == len(FILE)


KEY_LINE = b"Authorization: Bearer key-of-p\r\n"


@pytest.mark.parametrize(
    ("path", "host", "more", "status"),
    [
        (b"/livez", b"localhost", b"", b"200"),
        (b"/v1/models", b"localhost", b"", b"401"),
        (b"/v1/models", b"evil.example", b"", b"421"),
        (b"/v1/models", b"localhost", MANY, b"431"),
    ],
)
async def test_allowed_origins_may_read_every_answer(address, path, host, more, status):
    """Also answers of the server without the app; pages of other origins read none."""
    for origin in (ORIGIN, "https://evil.example"):
        head = b"GET %b HTTP/1.1\r\nOrigin: %b\r\nHost: %b\r\n%b\r\n" % (path, origin.encode(), host, more)
        async with asyncio.timeout(SECONDS_MAX), connected(address, head) as raw:
            answer = await asyncio.get_running_loop().sock_recv(raw, MIB)
        assert answer.split()[1] == status
        assert (f"access-control-allow-origin: {ORIGIN}\r\n".encode() in answer) is (origin == ORIGIN)


@pytest.mark.parametrize(
    ("host", "more", "status"), [(b"evil.example", b"", b"421"), (b"localhost", MANY, b"431")]
)
async def test_answers_without_the_app_have_the_shape_of_their_api(address, host, more, status):
    """Anthropic's below its path; both name the request in the header that their SDKs read."""
    for path, is_anthropic in ((b"/v1/messages/batches?limit=1", True), (b"/v1/batches", False)):
        head = b"GET %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (path, host, more)
        async with asyncio.timeout(SECONDS_MAX), connected(address, head) as raw:
            answer = await asyncio.get_running_loop().sock_recv(raw, MIB)
        fields, body = answer.split(b"\r\n\r\n", 1)
        found = json.loads(body)
        assert fields.split()[1] == status
        assert found.get("type", "") == ("error" if is_anthropic else "")
        assert (b"\r\nrequest-id: " + found.get("request_id", "").encode() in fields) is is_anthropic


@pytest.mark.parametrize(
    ("line", "more", "status"),
    [
        (b"GET /livez", b"", b"200"),
        (b"GET /v1/files", KEY_LINE, b"200"),
        (b"HEAD /v1/files", KEY_LINE, b"200"),
        (b"GET /v1/events", KEY_LINE, b"200"),
        (b"GET /", b"", b"307"),
        (b"GET /dashboard/", b"", b"200"),
        (b"GET /dashboard/none.js", b"", b"404"),
        (b"GET /v1/models", b"", b"401"),
        (b"GET /none", b"", b"404"),
        (b"POST /v1/batches", KEY_LINE + b"Content-Length: 1\r\n\r\n{", b"400"),
        (
            b"OPTIONS /v1/files",
            b"Origin: https://app.example.com\r\nAccess-Control-Request-Method: GET\r\n",
            b"200",
        ),
        (b"GET /v1/models", b"Transfer-Encoding: odd\r\n", b"400"),
        (b"GET /v1/models", MANY, b"431"),
    ],
)
async def test_every_answer_has_the_id_of_its_request(address, line, more, status):
    """That of the caller if it is valid, else a new one; also answers without the app, and streams."""
    for given, expected in ((b"job-7_a", rb"job-7_a"), (b"a b", rb"req_[0-9a-f]{32}")):
        head = b"%b HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: %b\r\n%b\r\n" % (line, given, more)
        async with asyncio.timeout(SECONDS_MAX), connected(address, head) as raw:
            answer = await asyncio.get_running_loop().sock_recv(raw, MIB)
        fields = answer.split(b"\r\n\r\n", 1)[0]
        assert fields.split()[1] == status
        assert len(re.findall(rb"\r\nx-request-id: " + expected + rb"(?=\r\n|$)", fields)) == 1
        assert fields.count(b"\r\nx-request-id:") == 1
