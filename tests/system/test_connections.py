"""Floods of connections to an api process with few files, and other clients served beside them."""

import asyncio
import http.client
import re
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest
from support import raw
from support.api import KEY, Api
from support.api_use import LINE, MODELS
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.api.dependencies import UPLOADS_AT_ONCE_MAX
from tidemill.api.http.protocol import HEADERS_MAX, PIPELINED_MAX, URL_BYTES_MAX
from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import ensure_topics
from tidemill.local.embedded.kraft import free_port

pytestmark = pytest.mark.kafka

FILES_MAX = 512
CONNECTIONS_MAX = FILES_MAX // 4
"""The number of connections that so few files allow."""
BOUNDS = {"head_seconds_max": 1, "slow_seconds_max": 2, "idle_seconds_max": 3600, "bytes_per_second_min": 4096}
GET = b"GET /v1/files HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n" % KEY.encode()
MIB = 1 << 20


@pytest.fixture(scope="module")
def api(kafka, tmp_path_factory):
    """An api process with few files and little patience."""
    asyncio.run(ensure_topics(Settings(), kafka))
    folder = tmp_path_factory.mktemp("connections")
    health = free_port()
    with Api(folder, kafka, files_max=FILES_MAX, models=MODELS, connections=BOUNDS, health_port=health) as api:
        yield api


@pytest.fixture
def address(api):
    """Its address."""
    return "127.0.0.1", api.settings.port


def is_live(port: int) -> bool:
    """Whether `/livez` is answered on a new connection."""
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS_MAX)
    try:
        asking.request("GET", "/livez")
        return asking.getresponse().status == 200
    finally:
        asking.close()


def is_served(api: Api) -> bool:
    """Whether others are served on new connections: both health checks, an upload and a list."""
    with openai.OpenAI(base_url=api.url, api_key=KEY, max_retries=0, timeout=WAIT_SECONDS_MAX) as other:
        other.files.create(file=("in.jsonl", LINE), purpose="batch")
        return len(other.files.list(limit=1).data) == 1 and all(
            is_live(port) for port in (api.settings.port, api.settings.health_port)
        )


def closed(api: Api, reason: str) -> float:
    """How many connections the process says it has closed for this reason."""
    asking = http.client.HTTPConnection("127.0.0.1", api.settings.health_port, timeout=WAIT_SECONDS_MAX)
    asking.request("GET", "/metrics")
    text = asking.getresponse().read().decode()
    asking.close()
    found = re.search(rf'^tidemill_api_connections_closed_total{{reason="{reason}"}} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def status(answer: bytes) -> int:
    """The status of a raw answer; 0 without one."""
    return int(answer.split(b" ", 2)[1]) if answer else 0


def resident(api: Api) -> int:
    """Bytes of memory that the process has."""
    return psutil.Process(api.process.pid).memory_info().rss


@pytest.mark.parametrize(
    "start", [b"", GET, POST + b"Content-Length: 9\r\n\r\n{"], ids=["nothing", "head", "body"]
)
def test_silent_connections_beyond_the_cap(api, address, start):
    """The longest idle ones are closed; others are served meanwhile, and a metric counts the closed ones.

    The kernel keeps connections that have sent nothing, so they take no file of the process.
    """
    before, files = (closed(api, "room"), resident(api)), psutil.Process(api.process.pid).num_fds()
    # With a key one address may have all of its connections at work; without one, any number of them wait.
    sources = ("127.0.0.2",) if b"Bearer" in start else ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")
    with raw.silent(address, 2 * CONNECTIONS_MAX, start, sources=sources):
        assert start or psutil.Process(api.process.pid).num_fds() < files + CONNECTIONS_MAX // 4
        assert is_served(api)
        with raw.silent(("127.0.0.1", api.settings.health_port), 200, start):
            assert is_served(api)
    assert resident(api) < before[1] + 32 * MIB
    assert not start or max(closed(api, "room"), closed(api, "full")) > before[0]


def test_the_bound_of_a_head(api, address):
    """One large header, many small ones, a long URL, endless trailers and extensions: little memory, an answer."""
    before = resident(api)
    flood = [b"a" * MIB] * 40
    small = [b"a: b\r\n" * (MIB // 6)] * 40
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    assert status(raw.asked(address, GET, b"a: ", *flood)) == 431
    assert status(raw.asked(address, GET, *small)) == 431
    assert status(raw.asked(address, GET, b"a: b\r\n" * HEADERS_MAX, b"\r\n")) == 431
    assert status(raw.asked(address, b"GET /", b"a" * URL_BYTES_MAX)) == 414
    assert status(raw.asked(address, chunked, b"1;", *flood)) == 431
    assert status(raw.asked(address, chunked, b"1\r\n{\r\n0\r\n", *small)) == 431
    assert status(raw.asked(address, chunked, b"1\r\n{\r\n0\r\na: ", *flood)) == 431
    assert resident(api) < before + 32 * MIB
    assert "Traceback" not in api.log
    whole = GET + b"a: b\r\n" * (HEADERS_MAX - 3) + b"b: " + b"b" * 60_000 + b"\r\nConnection: close\r\n\r\n"
    assert status(raw.asked(address, whole)) == 401


def test_slow_requests_are_ended(api, address):
    """A head, a body with a length, a chunked one: after some seconds, with 408 unless an answer has begun."""
    large = b"Content-Length: 200000\r\n\r\n"
    slow = (
        (408, b"GET /v1/files", b"/a"),
        (408, GET, b"a: b\r\n"),
        (408, POST + large, b"{"),
        (408, POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n"),
        # A fast beginning buys no slow rest.
        (408, POST + large + b" " * 100_000, b" "),
        # A client that is refused at once may not go on at leisure.
        (401, POST.replace(KEY.encode(), b"none") + large, b"{"),
    )
    before = closed(api, "head"), closed(api, "body")
    with ThreadPoolExecutor(len(slow)) as pool:
        answers = [pool.submit(raw.trickled, address, start, piece) for _, start, piece in slow]
        assert is_served(api)
        assert [status(answer.result()) for answer in answers] == [wanted for wanted, _, _ in slow]
    assert (closed(api, "head") - before[0], closed(api, "body") - before[1]) == (2, 4)


def test_a_client_that_reads_nothing_is_disconnected(api, address):
    """A download, and many answers to pipelined requests."""
    with openai.OpenAI(base_url=api.url, api_key=KEY) as sdk:
        file_id = sdk.files.create(file=("in.jsonl", LINE * (16 * MIB // len(LINE))), purpose="batch").id
    before = closed(api, "answer")
    with raw.connect(address, receives_bytes=4096) as reader:
        reader.sendall(
            b"GET /v1/files/%b/content HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n\r\n"
            % (file_id.encode(), KEY.encode())
        )
        wait_until(lambda: closed(api, "answer") > before, "a slow reader dropped")
        assert is_served(api)
        assert len(raw.answered(reader)) < 16 * MIB


def test_pipelined_requests_have_a_bound(api, address):
    """Some are answered in order; the connection ends at too many."""
    last = GET + b"Connection: close\r\n\r\n"
    assert raw.asked(address, (GET + b"\r\n") * (PIPELINED_MAX - 1) + last).count(b"HTTP/1.1 401") == PIPELINED_MAX
    before = resident(api)
    assert raw.asked(address, *[(GET + b"\r\n") * 10_000] * 4).count(b"HTTP/1.1") <= PIPELINED_MAX
    assert resident(api) < before + 16 * MIB


def test_busy_connections_leave_room_for_health_checks(api, address):
    """At the bound of busy connections, other requests get a 503."""
    began = POST.replace(b"batches", b"files") + (
        b"Content-Type: multipart/form-data; boundary=b\r\nExpect: 100-continue\r\nContent-Length: 100000\r\n\r\n"
    )
    before = closed(api, "full")
    half = CONNECTIONS_MAX // 2
    with raw.silent(address, half, began), raw.silent(address, half, began, sources=("127.0.0.3",)):
        answer = raw.asked(address, GET + b"\r\n")
        assert status(answer) == 503
        assert b"retry-after: " in answer
        assert all(is_live(port) for port in (api.settings.port, api.settings.health_port))
    assert closed(api, "full") > before
    wait_until(lambda: is_served(api), "served again")


def test_a_waiting_upload_is_not_slow(address):
    """Its time counts once the server reads, whether or not the client waits for `100 Continue`."""
    head = POST.replace(b"batches", b"files") + b"Content-Type: multipart/form-data; boundary=b\r\n"
    expecting = head + b"Expect: 100-continue\r\nContent-Length: "
    body = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
    body += b'Content-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + LINE * 4000 + b"\r\n--b--\r\n"
    size = b"%d\r\nConnection: close\r\n\r\n" % len(body)
    # The project's places are taken twice over, by clients that are ended after some seconds each.
    taking = raw.silent(address, UPLOADS_AT_ONCE_MAX, expecting + b"9999\r\n\r\n")
    with taking, raw.connect(address) as sent, raw.connect(address) as unsent:
        unsent.sendall(expecting + size)
        sent.sendall(head + b"Content-Length: " + size + body)
        assert status(raw.answered(sent)) == 200
        assert unsent.recv(1 << 16).startswith(b"HTTP/1.1 100")
        unsent.sendall(body)
        assert status(raw.answered(unsent)) == 200
