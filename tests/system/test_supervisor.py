"""The supervisor with little programs in place of the stages."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from support.waiting import until, wait_until

from tidemill.local import child, supervisor
from tidemill.local.child import ChildError, Program, executed
from tidemill.local.supervisor import Supervisor

READY = (
    "import signal, sys, time\nfrom tidemill.runtime import notify\nprint('hello', flush=True)\nnotify.ready()\n"
)
OBEYS = READY + "signal.pause()"
IGNORES = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + "while True: signal.pause()"
WORKS_AT_ITS_END = (
    "import os, signal, time\n"
    "def end(*_):\n"
    "    while not os.path.exists('go'): time.sleep(0.01)\n"
    "    open('done', 'w').close(); exit()\n"
    # Not `pause()`, which a signal that comes just before it does not end.
    "signal.signal(signal.SIGTERM, end)\n" + READY + "while True: time.sleep(0.02)"
)
FAILS = "print('no such model'); raise SystemExit(3)"
HAS_A_CHILD = (
    "import subprocess, sys\n"
    "other = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
    "print(other.pid, flush=True)\n" + OBEYS
)
BEATS = (
    "import signal, time\nfrom tidemill.runtime import notify\nnotify.ready(beats=True)\n"
    "signal.signal(signal.SIGTERM, lambda *_: exit())\nwhile True:\n    notify.alive()\n    time.sleep(0.05)"
)
SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from tidemill.local.embedded.broker import Broker
from tidemill.local.child import Program, executed
from tidemill.local.supervisor import Supervisor

async def main(folder, script):
    boss = Supervisor(say=print)
    broker = Broker(folder)
    await broker.prepare()
    await boss.start([Program(name="kafka", start=executed(broker.command, broker.environ, broker.folder),
                              log=broker.output, answers=broker.answers)], base=True)
    await boss.start([Program(name="stage", start=executed(lambda: [sys.executable, "-c", script], {}),
                              log=folder / "stage.log")])
    print(*(pid for pids in boss.processes.values() for pid in pids), flush=True)
    await asyncio.sleep(600)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


@pytest.fixture
async def boss():
    """A supervisor that leaves nothing behind; `told` has the lines that it printed."""
    told = []
    boss = Supervisor(say=told.append)
    boss.told = told
    yield boss
    boss.kill()
    await boss.stop()


@pytest.fixture
def program(tmp_path):
    """Makes a program of a script."""

    def make(name, script, folder=None, **more):
        command = [sys.executable, "-c", script]
        start = executed(lambda: command, os.environ, folder)
        return Program(name=name, start=start, log=tmp_path / f"{name}.log", **more)

    return make


def lives(pid):
    """Whether a process is there and not just waiting to be buried."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_starts_and_stops(boss, program, tmp_path):
    """All are ready when `start` returns; their logs have their output; a stop leaves none running."""
    await boss.start([program("a", OBEYS), program("b", OBEYS)])
    await boss.start([program("kafka", OBEYS)], base=True)
    pids = boss.processes
    assert sorted(pids) == ["a", "b", "kafka"]
    assert all(lives(pid) for (pid,) in pids.values())
    await until(lambda: (tmp_path / "a.log").read_text() == "hello\n", "the log")
    began = time.monotonic()
    await boss.stop()
    assert time.monotonic() - began < supervisor.STOP_SECONDS_MAX
    assert boss.processes == {"a": [], "b": [], "kafka": []}
    assert not any(lives(pid) for (pid,) in pids.values())


async def test_a_program_is_nice_once_it_is_ready(boss, program):
    """With all of its threads, also after a restart; others stay as they are."""
    busy = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n" + OBEYS
    await boss.start([program("a", busy, niceness=3), program("b", busy)])
    own = os.getpriority(os.PRIO_PROCESS, 0)

    def niceness(name):
        (pid,) = boss.processes[name]
        threads = Path(f"/proc/{pid}/task").iterdir()
        return [os.getpriority(os.PRIO_PROCESS, int(thread.name)) - own for thread in threads]

    assert (niceness("a"), niceness("b")) == ([3, 3], [0, 0])
    before = boss.processes["a"]
    os.kill(before[0], signal.SIGKILL)
    await until(lambda: boss.processes["a"] not in ([], before) and niceness("a") == [3, 3], "a new process")


async def test_a_killed_program_comes_back(boss, program):
    """After kill -9 it runs again under another pid, and the others are left alone."""
    await boss.start([program("a", OBEYS), program("b", OBEYS)])
    before = boss.processes
    os.kill(before["a"][0], signal.SIGKILL)
    await until(lambda: boss.processes["a"] not in ([], before["a"]), "a new process")
    assert boss.processes["b"] == before["b"]
    assert "a was ended by Killed; restarting it in" in boss.told[0]


async def test_a_silent_program_is_restarted(boss, program, monkeypatch):
    """A process that is stopped, or whose loop is blocked, says no more that it is alive."""
    monkeypatch.setattr(child, "SILENCE_SECONDS_MAX", 1.0)
    await boss.start([program("a", BEATS), program("b", OBEYS)])
    before = boss.processes
    os.kill(before["a"][0], signal.SIGSTOP)
    await until(lambda: boss.processes["a"] not in ([], before["a"]), "a new process")
    assert boss.processes["b"] == before["b"], "one that never promised anything may be silent"
    assert "a sent no heartbeat for 1 s; restarting it in" in boss.told[0]


async def test_children_end_with_their_program(boss, program, tmp_path):
    """A helper of a killed program does not stay."""
    await boss.start([program("a", HAS_A_CHILD)])
    pid = int(await until(lambda: (tmp_path / "a.log").read_text().partition("\n")[0], "the pid"))
    assert lives(pid)
    os.kill(boss.processes["a"][0], signal.SIGKILL)
    await until(lambda: not lives(pid), "the end of the helper")


async def test_the_error_says_why_a_program_cannot_start(boss, program):
    """The error has the exit code and the end of the log."""
    with pytest.raises(ChildError, match=r"(?s)b cannot be started: it ended with exit code 3.*no such model"):
        await boss.start([program("a", OBEYS), program("b", FAILS)])
    assert len(boss.told) == child.STARTS_MAX - 1


async def test_a_program_that_is_never_ready(boss, program):
    """It is not waited for without end."""
    with pytest.raises(ChildError, match=r"was not ready within 0 s"):
        await boss.start([program("a", "import signal; signal.pause()", start_seconds_max=0.2)])


async def test_a_command_that_is_not_there(boss, tmp_path):
    """That is an error like any other."""
    program = Program(name="a", start=executed(lambda: ["/no/such"], os.environ), log=tmp_path / "a.log")
    with pytest.raises(ChildError, match=r"a cannot be started"):
        await boss.start([program])


async def test_a_program_that_does_not_stop_is_killed(boss, program, monkeypatch):
    """The others have ended by then."""
    monkeypatch.setattr(supervisor, "STAGES_STOP_SECONDS_MAX", 0.2)
    await boss.start([program("a", IGNORES), program("b", OBEYS)])
    pids = boss.processes
    await boss.stop()
    assert not any(lives(pid) for (pid,) in pids.values())
    assert any("a did not stop within" in line for line in boss.told)


@pytest.mark.parametrize("ends", [True, False])
async def test_a_program_may_finish_its_last_work(boss, program, tmp_path, monkeypatch, ends):
    """The operator hears why the stop takes longer; that has a bound, too."""
    monkeypatch.setattr(supervisor, "STAGES_STOP_SECONDS_MAX", 0.2)
    if not ends:
        monkeypatch.setattr(child, "LAST_WORK_SECONDS_MAX", 0.2)
    await boss.start([program("a", WORKS_AT_ITS_END, folder=tmp_path, last_work=lambda: "a writes.")])
    ((pid,),) = boss.processes.values()
    stopping = asyncio.ensure_future(boss.stop())
    await until(lambda: "a writes." in boss.told, "the word")
    if ends:
        assert lives(pid)
        (tmp_path / "go").touch()
    await stopping
    assert not lives(pid)
    assert (tmp_path / "done").exists() == ends
    assert any("a did not stop within" in line for line in boss.told) != ends


async def test_a_stop_while_starting(boss, program):
    """It also stops a program that is not ready yet."""
    starting = asyncio.ensure_future(boss.start([program("a", "import signal; signal.pause()")]))
    (pid,) = await until(lambda: boss.processes.get("a"), "the process")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await boss.stop()
    assert not lives(pid)


async def test_kill_ends_all_at_once(boss, program):
    """Even what ignores SIGTERM."""
    await boss.start([program("a", IGNORES)])
    (pid,) = boss.processes["a"]
    boss.kill()
    await until(lambda: not lives(pid), "the end")


async def test_the_base_is_stopped_last(boss, program, tmp_path):
    """The stages have the broker until they have ended."""
    script = (
        "import signal, sys\n"
        "def end(*_):\n"
        "    open({path!r}, 'a').write({name!r})\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n" + READY + "while True: time.sleep(0.02)"
    )
    write = partial(script.format, path=str(tmp_path / "order"))
    await boss.start([program("kafka", write(name="base"))], base=True)
    await boss.start([program("a", write(name="stage "))])
    await boss.stop()
    assert (tmp_path / "order").read_text() == "stage base"


@pytest.mark.kafka
def test_nothing_outlives_a_killed_supervisor(tmp_path):
    """After kill -9 of the supervisor neither a stage nor the broker is there."""
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path), OBEYS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        assert all(lives(pid) for pid in pids)
        process.kill()
    wait_until(lambda: not any(lives(pid) for pid in pids), "the end of all")
