"""Stages as forks of a server, with real processes."""

import asyncio
import os
import signal
from contextlib import suppress
from functools import partial
from io import FileIO

import psutil
import pytest
import pytest_asyncio
from support.ports import free_port
from support.process_memory import held
from support.waiting import WAIT_SECONDS_MAX, until

from tidemill.local import child as child_module
from tidemill.local import fork_server
from tidemill.local import forks as forks_module
from tidemill.local.child import STARTS_MAX, Child, ChildError, Program
from tidemill.local.fork_server import Request
from tidemill.local.forks import ARE_SAFE, SERVER, ForkError, Forks
from tidemill.local.supervisor import Supervisor

SECRET = "sk-of-another-stage"
OWN = "sk-of-this-stage"


PLAIN = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not ARE_SAFE, reason="stages are no forks on this system"),
]


@pytest.fixture(scope="module")
def said():
    """The lines for the operator."""
    return []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def forks(said, tmp_path_factory):
    """Forks of one server, which serves all tests, since it starts slowly."""
    made = Forks(PLAIN, tmp_path_factory.mktemp("forks") / "server.log", say=said.append)
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


WITHOUT_ROOM = """
import os
fork, tries = os.fork, []
def limited():
    if tries:
        return fork()
    tries.append(1)
    raise BlockingIOError(11, "no room")
os.fork = limited
"""


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
    """Neither its memory nor that of its server has a secret of this process, nor the server one of the fork."""
    monkeypatch.setenv("TIDEMILL_API_KEY", SECRET)
    environ["ITS_KEY"] = OWN
    request = Request("results", environ)
    fork = await forks.fork(request, pipes.output, pipes.messages)
    process = psutil.Process(fork.pid)
    assert os.getpgid(fork.pid) == fork.pid
    await until(lambda: process.cmdline()[0].startswith("tidemill results"), "the title of the process")
    process.suspend()
    assert held(process.pid, {SECRET, OWN}) == {OWN}
    assert held(process.ppid(), {SECRET, OWN}) == set()
    process.kill()
    await fork.wait()
    assert OWN not in repr(request)


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


async def test_forks_end_with_their_server(forks, environ, pipes, said):
    """The operator hears of it, and the next request starts another server."""
    said.clear()
    fork = await forks.fork(Request("results", environ), pipes.output, pipes.messages)
    server = psutil.Process(fork.pid).parent()
    server.kill()
    assert await fork.wait() == -signal.SIGKILL
    assert said == [f"{SERVER} was ended by Killed, and the stages with it; they start again."]
    await until(lambda: not psutil.pid_exists(fork.pid), "the end of the fork")
    again = await forks.fork(Request("results", environ), pipes.output, pipes.messages)
    assert psutil.Process(again.pid).parent() != server
    again.terminate()


async def test_signals_for_a_whole_installation_leave_the_server(forks, environ, pipes):
    """So that the stages stop in order; a fork does obey them."""
    fork = await forks.fork(Request("results", environ), pipes.output, pipes.messages)
    server = psutil.Process(fork.pid).parent()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        server.send_signal(number)
    fork.terminate()
    assert await fork.wait() in {0, -signal.SIGTERM}
    assert server.is_running()


@pytest.fixture
def broken(tmp_path, said):
    """Makes forks of a Python in which this code runs first."""

    def make(code):
        (tmp_path / "sitecustomize.py").write_text(code)
        paths = os.pathsep.join(filter(None, (str(tmp_path), PLAIN.get("PYTHONPATH"))))
        said.clear()
        return Forks({**PLAIN, "PYTHONPATH": paths}, tmp_path / "server.log", say=said.append)

    return make


async def test_a_server_that_cannot_import_the_stages(broken, environ, tmp_path, said):
    """All stages fail with it, and not one server for each; the operator sees once why."""
    forks = broken("import sys\nsys.modules['uvloop'] = None")

    def program(stage):
        start = partial(forks.fork, Request(stage, environ))
        return Program(name=stage, start=start, log=tmp_path / f"{stage}.log")

    boss = Supervisor(say=said.append)
    with pytest.raises(
        ChildError, match=rf"cannot be started: it could not be run: {SERVER} ended with exit code 1"
    ):
        await boss.start(map(program, fork_server.STAGES))
    boss.kill()
    await boss.stop()
    await forks.stop()
    assert 1 <= sum("import of uvloop halted" in line for line in said) <= STARTS_MAX


async def test_a_server_that_cannot_be_started_yet(forks, environ, pipes, monkeypatch):
    """Its preparation leaves that to the first fork, which may find more room."""
    await forks.stop()
    with monkeypatch.context() as patch:
        patch.setattr(forks_module.parent_death, "command", lambda _: ["/no/such/program"])
        await forks.prepare()
        with pytest.raises(FileNotFoundError):
            await forks.fork(Request("results", environ), pipes.output, pipes.messages)
    fork = await forks.fork(Request("results", environ), pipes.output, pipes.messages)
    fork.terminate()


async def test_a_request_that_was_given_up(forks, environ, pipes):
    """The answer to it is not the answer to the next."""
    first = await forks.fork(Request("results", environ), pipes.output, pipes.messages)
    psutil.Process(first.pid).parent().suspend()
    given_up = asyncio.ensure_future(forks.fork(Request("results", environ), pipes.output, pipes.messages))
    await until(lambda: forks._server._asked is not None and not forks._server._asked.done(), "the request")
    given_up.cancel()
    await asyncio.wait([given_up])
    fork = await forks.fork(Request("ingest", environ), pipes.output, pipes.messages)
    process = psutil.Process(fork.pid)
    await until(lambda: process.cmdline()[0].startswith("tidemill ingest"), "the title of the process")
    fork.terminate()


async def test_a_request_that_is_given_up_ends_no_other_fork(forks, environ, pipes):
    """The others may be stopping in order."""
    first = await forks.fork(Request("results", environ), pipes.output, pipes.messages)
    server = psutil.Process(first.pid).parent()
    server.suspend()
    given_up = asyncio.ensure_future(forks.fork(Request("ingest", environ), pipes.output, pipes.messages))
    await until(lambda: forks._server._asked is not None and not forks._server._asked.done(), "the request")
    given_up.cancel()
    server.resume()
    await asyncio.wait([given_up])
    assert psutil.Process(first.pid).is_running()
    await until(lambda: [child.pid for child in server.children()] == [first.pid], "the end of the other fork")
    first.terminate()
    assert await first.wait() in {0, -signal.SIGTERM}


async def test_a_system_without_room(broken, environ, pipes):
    """The server says so and goes on; the next request finds room."""
    forks = broken(WITHOUT_ROOM)
    with pytest.raises(ForkError, match=r"forks no process: .*no room"):
        await forks.fork(Request("results", environ), pipes.output, pipes.messages)
    fork = await forks.fork(Request("results", environ), pipes.output, pipes.messages)
    fork.terminate()
    await forks.stop()


@pytest.fixture
def child(forks, environ, tmp_path):
    """A stage under supervision."""
    start = partial(forks.fork, Request("results", environ))
    program = Program(name="results", start=start, log=tmp_path / "results.log", give_up=forks.kill)
    return Child(program, say=lambda _: None, changed=lambda: None)


async def test_a_stop_does_not_wait_for_a_server_that_stands_still(forks, child, environ, pipes):
    """A start that has not begun ends at once."""
    fork = await forks.fork(Request("results", environ), pipes.output, pipes.messages)
    psutil.Process(fork.pid).parent().suspend()
    running = asyncio.ensure_future(child.run())
    await until(lambda: forks._server._asked is not None and not forks._server._asked.done(), "the request")
    await child.stop()
    await asyncio.wait_for(running, WAIT_SECONDS_MAX)


async def test_an_end_that_is_not_reported(child, monkeypatch):
    """The server is killed, by which the end of its forks is known."""
    monkeypatch.setattr(child_module, "KILLED_SECONDS_MAX", 0.1)
    running = asyncio.ensure_future(child.run())
    await until(lambda: child.pid, "the process")
    psutil.Process(child.pid).parent().suspend()
    await child.stop(0.1)
    await asyncio.wait_for(running, WAIT_SECONDS_MAX)
