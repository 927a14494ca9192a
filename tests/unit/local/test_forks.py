"""Stages as forks of a server, with real processes."""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from io import FileIO

import psutil
import pytest
import pytest_asyncio
from support.ports import free_port
from support.waiting import until

from tidemill.local import fork_server
from tidemill.local.fork_server import Request
from tidemill.local.forks import ENDED, ForkError, Forks

SECRET = "sk-of-another-stage"


PLAIN = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def said():
    """The lines for the operator."""
    return []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def forks(said):
    """Forks of one server, which serves all tests, since it starts slowly."""
    made = Forks(PLAIN, say=said.append)
    yield made
    await made.stop()


@pytest.fixture
def environ(tmp_path):
    """Settings of a stage that waits for its broker for as long as it may."""
    config = tmp_path / "tidemill.toml"
    config.write_text("")
    return {
        "TIDEMILL_CONFIG": str(config),
        "TIDEMILL_DATA": str(tmp_path),
        "TIDEMILL_KAFKA": f"127.0.0.1:{free_port()}",
        "TIDEMILL_HEALTH_PORT": "0",
    }


class Pipes:
    """The pipes of a process, and all that it wrote to the first."""

    def __init__(self):
        (self._output, output), (self._messages, messages) = os.pipe(), os.pipe()
        self.output, self.messages = FileIO(output, "w"), FileIO(messages, "w")

    async def read(self):
        """What the process wrote until it ended."""
        self.output.close()
        with FileIO(self._output) as pipe:
            return (await asyncio.to_thread(pipe.readall)).decode()

    def close(self):
        """Close all ends that are open."""
        self.output.close()
        self.messages.close()
        for end in (self._output, self._messages):
            with suppress(OSError):
                os.close(end)


@pytest.fixture
def pipes():
    """The pipes of one process."""
    made = Pipes()
    yield made
    made.close()


async def test_a_fork_is_the_command_of_its_stage(forks, environ, pipes, monkeypatch):
    """It ends as the command does, and writes to its pipe; here, that a setting is wrong."""
    monkeypatch.setenv("TIDEMILL_KAFKA", SECRET)
    wrong = {**environ, "TIDEMILL_PARTITIONS": "many"}
    fork = await forks.fork(Request("results", wrong), pipes.output, pipes.messages)
    assert await fork.wait() == 2
    assert "TIDEMILL_PARTITIONS" in await pipes.read()
    fork.terminate()


async def test_a_fork_has_the_environment_of_its_stage_alone(forks, environ, pipes, monkeypatch):
    """Neither memory of its start nor the system's view of it has a secret of this process."""
    monkeypatch.setenv("TIDEMILL_API_KEY", SECRET)
    request = Request("results", environ)
    fork = await forks.fork(request, pipes.output, pipes.messages)
    process = psutil.Process(fork.pid)
    await until(lambda: process.cmdline()[0].startswith("tidemill results"), "the title of the process")
    assert SECRET not in str(process.environ())
    assert SECRET not in str(process.parent().environ())
    assert os.getpgid(fork.pid) == fork.pid
    fork.terminate()
    await fork.wait()
    assert str(environ["TIDEMILL_KAFKA"]) not in repr(request)


async def test_a_large_environment(forks, environ, pipes):
    """Settings with many models are longer than the buffer of a socket."""
    models = ", ".join(f'"m{n}": {{"backends": [{{"url": "http://h/v1"}}]}}' for n in range(20_000))
    large = {**environ, "TIDEMILL_MODELS": f"{{{models}, {'x'}}}"}
    fork = await forks.fork(Request("results", large), pipes.output, pipes.messages)
    assert await fork.wait() == 2
    assert "TIDEMILL_MODELS" in await pipes.read()


async def test_a_killed_fork_says_how_it_ended(forks, environ, pipes):
    """By its signal, as a process that is started directly does."""
    fork = await forks.fork(Request("results", environ), pipes.output, pipes.messages)
    os.kill(fork.pid, signal.SIGKILL)
    assert await fork.wait() == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only its kernel kills the children of a process that dies")
async def test_forks_end_with_their_server(forks, environ, pipes, said):
    """The operator hears of it, and the next request starts another server."""
    fork = await forks.fork(Request("results", environ), pipes.output, pipes.messages)
    server = psutil.Process(fork.pid).parent()
    server.kill()
    assert await fork.wait() == -signal.SIGKILL
    assert said == [f"{ENDED}."]
    await until(lambda: not psutil.pid_exists(fork.pid), "the end of the fork")
    again = await forks.fork(Request("results", environ), pipes.output, pipes.messages)
    assert psutil.Process(again.pid).parent() != server
    again.terminate()


async def test_a_server_that_cannot_import_the_stages(environ, pipes, tmp_path):
    """That is an error like any other of a start."""
    (tmp_path / "uvloop.py").write_text("raise ImportError('broken')")
    broken = Forks({"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}, say=print)
    with pytest.raises(ForkError, match=ENDED):
        await broken.fork(Request("results", environ), pipes.output, pipes.messages)
    await broken.stop()


async def test_nobody_waits_for_a_request_that_was_given_up(forks, environ, pipes):
    """The answer to it is not the answer to the next."""
    given_up = asyncio.ensure_future(forks.fork(Request("results", environ), pipes.output, pipes.messages))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    fork = await forks.fork(Request("ingest", environ), pipes.output, pipes.messages)
    process = psutil.Process(fork.pid)
    await until(lambda: process.cmdline()[0].startswith("tidemill ingest"), "the title of the process")
    fork.terminate()


async def test_a_system_without_room():
    """The server goes on, and its other forks with it."""
    ours, theirs = fork_server.socket.socketpair()
    with ours, theirs, pytest.MonkeyPatch.context() as patch:

        def refuse():
            raise BlockingIOError(11, "Resource temporarily unavailable")

        patch.setattr(os, "fork", refuse)
        assert fork_server._fork(theirs) == -1
        assert b"Resource temporarily unavailable" in ours.recv(1000)
