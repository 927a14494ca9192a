"""When a supervised process is restarted."""

import asyncio
import re
import sys

import pytest
from support.waiting import until

from tidemill.kafka.freeze_guard import FROZEN
from tidemill.local import child
from tidemill.local.child import Child, ChildError, Program
from tidemill.runtime.heartbeat import BLOCKED

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
        command=lambda: [sys.executable, "-I", "-S", "-c", "raise SystemExit(3)"],
        log=tmp_path / "stage.log",
        environ={},
    )
    return Child(program, say=said.append, changed=lambda: None)


async def test_a_process_that_was_never_ready_is_given_up(ends, said):
    """After a few attempts, with growing delays."""
    with pytest.raises(ChildError, match="stage cannot be started: it ended with exit code 3"):
        await ends.run()
    delays = [float(DELAY.search(line)[1]) for line in said]
    assert len(delays) == child.STARTS_MAX - 1
    assert all(0 < delay <= child.DELAY_SECONDS_MIN * 2**n for n, delay in enumerate(delays))


async def test_delays_start_over_after_a_long_life(ends, said, monkeypatch):
    """Earlier failures no longer count then, so it is not given up either."""
    monkeypatch.setattr(child, "STABLE_SECONDS", 0.0)
    running = asyncio.create_task(ends.run())
    await until(lambda: len(said) > child.STARTS_MAX, "more restarts")
    await ends.stop()
    await running
    assert all(float(DELAY.search(line)[1]) <= child.DELAY_SECONDS_MIN for line in said)


@pytest.mark.parametrize(("code", "reason"), [(FROZEN, "stood still"), (BLOCKED, "event loop was blocked")])
async def test_a_process_that_ended_itself_says_why(tmp_path, said, code, reason):
    """Where the operator looks first, and not only in its log."""
    command = [sys.executable, "-I", "-S", "-c", f"raise SystemExit({code})"]
    program = Program(name="stage", command=lambda: command, log=tmp_path / "stage.log", environ={})
    with pytest.raises(ChildError, match=rf"it ended with exit code {code}: .*{reason}"):
        await Child(program, say=said.append, changed=lambda: None).run()
    assert all(reason in line for line in said)
