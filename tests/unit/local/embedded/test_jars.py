"""Downloads the jars of the broker from a repository that fails in many ways."""

import asyncio
import hashlib

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from support.waiting import until

from tidemill.local.embedded import jars
from tidemill.local.embedded.jars import Jar, JarError

CONTENT = {"a": b"first" * 50_000, "b": b"second" * 40_000}


def jar_of(name: str) -> Jar:
    """What the list would say of the content."""
    content = CONTENT[name]
    return Jar(
        group="org.example.deep",
        artifact=name,
        version="1.0",
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
    )


JARS = (jar_of("a"), jar_of("b"))


class Repository:
    """A repository whose next answers can be spoiled, one by one."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.spoilt: list[str] = []
        self.let_go = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer in the next mood, and well once all have passed."""
        self.asked.append(request.path)
        content = CONTENT[request.match_info["artifact"]]
        match self.spoilt.pop(0) if self.spoilt else None:
            case "wrong":
                return web.Response(body=b"x" * len(content))
            case "longer":
                return web.Response(body=content + b"x")
            case "missing":
                return web.Response(status=404)
            case "busy":
                return web.Response(status=503)
            case ("cut" | "slow") as mood:
                response = web.StreamResponse(headers={"content-length": str(len(content))})
                await response.prepare(request)
                await response.write(content[:1000])
                if mood == "slow":
                    await self.let_go.wait()
                request.transport.close()
                return response
        return web.Response(body=content)


@pytest.fixture
async def repository(monkeypatch):
    """A repository on this machine; the waits between attempts are cut short."""
    monkeypatch.setattr(jars, "RETRY_SECONDS", 0.001)
    moods = Repository()
    app = web.Application()
    app.router.add_get("/maven/org/example/deep/{artifact}/1.0/{name}", moods.answer)
    async with TestServer(app, host="127.0.0.1") as server:
        moods.address = str(server.make_url("/maven"))
        yield moods


def files(cache):
    """What lies in the cache as a jar, or as a part of one."""
    return {file.name: file.read_bytes() for file in (cache / "jars").glob("*") if file.suffix != ".json"}


WHOLE = {"a-1.0.jar": CONTENT["a"], "b-1.0.jar": CONTENT["b"]}


def test_the_list_is_complete():
    """It names the broker and each jar once, with hash and size."""
    pinned = jars.pinned()
    assert len({jar.name for jar in pinned}) == len(pinned)
    assert any(jar.artifact == "kafka_2.13" for jar in pinned)
    assert all(len(jar.sha256) == 64 and jar.size > 0 for jar in pinned)


async def test_jars_are_downloaded_once(tmp_path, repository):
    """In the order of the list; the second call sends no request."""
    paths = await jars.fetch(JARS, tmp_path, repository=repository.address)
    assert [path.name for path in paths] == ["a-1.0.jar", "b-1.0.jar"]
    assert files(tmp_path) == WHOLE
    asked = len(repository.asked)
    await jars.fetch(JARS, tmp_path, repository=repository.address)
    assert len(repository.asked) == asked == 2


@pytest.mark.parametrize("mood", ["wrong", "longer", "busy", "cut"])
async def test_a_passing_fault_is_retried(tmp_path, repository, mood):
    """And the download succeeds."""
    repository.spoilt = [mood] * 2
    await jars.fetch(JARS, tmp_path, repository=repository.address)
    assert files(tmp_path) == WHOLE


@pytest.mark.parametrize(
    ("mood", "cause"),
    [("wrong", "SHA-256"), ("longer", "more than the"), ("busy", "503"), ("cut", "a-1.0.jar"), ("missing", "404")],
)
async def test_a_lasting_fault_is_reported(tmp_path, repository, mood, cause):
    """With the name of the jar and the cause; no partial file is left."""
    repository.spoilt = [mood] * 100
    with pytest.raises(JarError, match=cause) as caught:
        await jars.fetch(JARS[:1], tmp_path, repository=repository.address)
    assert "cannot download a-1.0.jar from" in str(caught.value)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("spoil", [b"", b"x" * len(CONTENT["a"])])
async def test_a_damaged_file_is_downloaded_again(tmp_path, repository, spoil):
    """Whatever its size."""
    await jars.fetch(JARS, tmp_path, repository=repository.address)
    (tmp_path / "jars" / "a-1.0.jar").write_bytes(spoil)
    await jars.fetch(JARS, tmp_path, repository=repository.address)
    assert files(tmp_path) == WHOLE


async def test_a_file_that_others_could_write_is_downloaded_again(tmp_path, repository):
    """Another user could change it after the check."""
    await jars.fetch(JARS, tmp_path, repository=repository.address)
    jar = tmp_path / "jars" / "a-1.0.jar"
    jar.chmod(0o666)
    await jars.fetch(JARS, tmp_path, repository=repository.address)
    assert files(tmp_path) == WHOLE
    assert jar.stat().st_mode & 0o777 == 0o600


async def test_a_cache_that_others_may_write_to_becomes_private(tmp_path, repository):
    """From then on only its owner may write."""
    (tmp_path / "jars").mkdir()
    (tmp_path / "jars").chmod(0o777)
    await jars.fetch(JARS, tmp_path, repository=repository.address)
    assert (tmp_path / "jars").stat().st_mode & 0o777 == 0o755


async def test_concurrent_downloads_of_the_same_jars(tmp_path, repository):
    """All succeed."""
    await asyncio.gather(*(jars.fetch(JARS, tmp_path, repository=repository.address) for _ in range(4)))
    assert files(tmp_path) == WHOLE


async def test_a_cancelled_download_leaves_no_file(tmp_path, repository):
    """As with Ctrl-C."""
    repository.spoilt = ["slow", "slow"]
    fetching = asyncio.ensure_future(jars.fetch(JARS, tmp_path, repository=repository.address))
    await until(lambda: len(repository.asked) == 2, "two questions")
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    repository.let_go.set()
    assert files(tmp_path) == {}


async def test_without_a_network_the_error_names_the_jar(tmp_path, monkeypatch, unused_tcp_port):
    """And the cause."""
    monkeypatch.setattr(jars, "RETRY_SECONDS", 0.001)
    with pytest.raises(JarError, match=r"cannot download [ab]-1\.0\.jar .* connect"):
        await jars.fetch(JARS, tmp_path, repository=f"http://127.0.0.1:{unused_tcp_port}")


async def test_a_cache_that_cannot_be_written(tmp_path, repository):
    """The error names the cache, and the variable that names another."""
    (tmp_path / "file").write_text("")
    with pytest.raises(JarError, match=r"cannot use the cache .*; TIDEMILL_CACHE names another folder"):
        await jars.fetch(JARS, tmp_path / "file", repository=repository.address)
