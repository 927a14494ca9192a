"""When a supervised process is restarted."""

import asyncio
import os
import re
import sys

import pytest
from support.waiting import until

from tidemill.kafka.freeze_guard import FROZEN
from tidemill.local import child
from tidemill.local.child import Child, ChildError, Program, executed
from tidemill.runtime import heartbeat, notify
from tidemill.runtime.heartbeat import BLOCKED, Heartbeat

DELAY = re.compile(r"restarting it in (\d+\.\d) s")


@pytest.fixture
def said():
    """The lines for the operator."""
    return []


@pytest.fixture
def ends(tmp_path, said):
    """A process that ends at once, again and again."""
    program = Program(
        name="stage",
        start=executed(lambda: [sys.executable, "-I", "-S", "-c", "raise SystemExit(3)"], {}),
        log=tmp_path / "stage.log",
    )
    return Child(program, say=said.append, changed=lambda: None)


async def test_a_process_that_was_never_ready_is_given_up(ends, said):
    """After a few attempts, with growing delays."""
    with pytest.raises(ChildError, match="stage cannot be started: it ended with exit code 3"):
        await ends.run()
    delays = [float(DELAY.search(line)[1]) for line in said]
    assert len(delays) == child.STARTS_MAX - 1
    assert all(0 < delay <= child.DELAY_SECONDS_MIN * 2**n for n, delay in enumerate(delays))


@pytest.fixture
def starts(tmp_path, said):
    """Makes a child that runs a script with `notify`."""

    def make(script, seconds_max=child.START_SECONDS_MAX):
        command = [sys.executable, "-c", f"import time\nfrom tidemill.runtime import notify\n{script}"]
        log = tmp_path / "stage.log"
        start = executed(lambda: command, os.environ)
        program = Program(name="stage", start=start, log=log, start_seconds_max=seconds_max)
        return Child(program, say=said.append, changed=lambda: None)

    return make


async def test_delays_start_over_after_a_long_life(starts, said, monkeypatch):
    """Earlier failures of a process that was ready no longer count then, so it is not given up either."""
    monkeypatch.setattr(child, "STABLE_SECONDS", 0.0)
    made = starts("notify.ready()")
    running = asyncio.create_task(made.run())
    await until(lambda: len(said) > child.STARTS_MAX or running.done(), "more restarts")
    await made.stop()
    await running
    assert all(float(DELAY.search(line)[1]) <= child.DELAY_SECONDS_MIN for line in said)


async def test_slow_starts_are_failures(starts, said, monkeypatch):
    """A process that ends long after it started, and was never ready, is given up too."""
    monkeypatch.setattr(child, "STABLE_SECONDS", 0.0)
    running = asyncio.create_task(starts("time.sleep(600)", 0.1).run())
    await until(lambda: running.done() or len(said) >= child.STARTS_MAX, "the last start")
    with pytest.raises(ChildError, match="stage cannot be started: it made no progress and was not ready"):
        await asyncio.wait_for(running, 0)


async def test_a_start_that_makes_progress_may_take_any_time(starts, said):
    """Each word of progress restarts the time."""
    work = "for _ in range(120):\n    notify.progress()\n    time.sleep(0.05)\nnotify.ready()\ntime.sleep(600)"
    made = starts(work, 5.0)
    running = asyncio.create_task(made.run())
    await until(lambda: made.ready.is_set() or said, "readiness")
    assert not said
    await made.stop()
    await running


async def test_a_start_without_progress_is_ended(starts, said):
    """A loop that runs is no progress."""
    made = starts("while True:\n    notify._send(b'alive')\n    time.sleep(0.05)", 1.0)
    running = asyncio.create_task(made.run())
    await until(lambda: said, "a restart")
    assert "stage made no progress and was not ready within 1 s" in said[0]
    await made.stop()
    await running


async def test_a_heartbeat_passes_progress_on(monkeypatch):
    """Only when it changes."""
    reading, writing = os.pipe()
    monkeypatch.setattr(notify, "_pipe", [])
    monkeypatch.setenv(notify.VARIABLE, str(writing))
    monkeypatch.setattr(heartbeat, "LOOK_SECONDS", 0.0)
    marks = [0, 0, 7, 7, 9, 9]
    beat = Heartbeat()
    beat.progress = lambda: marks.pop(0) if marks[1:] else marks[0]
    beating = asyncio.create_task(beat.run())
    await until(lambda: not marks[1:], "the looks")
    beating.cancel()
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert [word for word in pipe if word != b"alive\n"] == [b"progress\n"] * 2


@pytest.mark.parametrize(("code", "reason"), [(FROZEN, "stood still"), (BLOCKED, "event loop was blocked")])
async def test_a_process_that_ended_itself_says_why(tmp_path, said, code, reason):
    """Where the operator looks first, and not only in its log."""
    command = [sys.executable, "-I", "-S", "-c", f"raise SystemExit({code})"]
    program = Program(name="stage", start=executed(lambda: command, {}), log=tmp_path / "stage.log")
    with pytest.raises(ChildError, match=rf"it ended with exit code {code}: .*{reason}"):
        await Child(program, say=said.append, changed=lambda: None).run()
    assert all(reason in line for line in said)
