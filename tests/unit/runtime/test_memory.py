"""Objects that exist when a process is ready are exempt from collection, and freed blocks leave the process."""

import ctypes
import gc
import subprocess
import sys
from collections import deque

import pytest
from support.waiting import WAIT_SECONDS_MAX

from tidemill.__main__ import main
from tidemill.runtime import memory


@pytest.fixture(autouse=True)
def _as_at_a_start():
    before = gc.get_threshold()
    gc.unfreeze()
    yield
    gc.set_threshold(*before)


def test_startup_objects_are_frozen():
    """A full collection skips them; later objects are collected as usual."""
    gc.collect()
    before = len(gc.get_objects())
    memory.freeze_startup_objects()
    assert gc.get_freeze_count() >= before * 0.9
    ring: list[object] = []
    ring.append(ring)
    del ring
    assert len(gc.get_objects()) < before / 10
    assert gc.collect() >= 1


def test_commands_collect_rarely_from_the_start(monkeypatch):
    """Before they import what they need."""
    gc.set_threshold(700)
    monkeypatch.setattr(sys, "argv", ["tidemill", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert gc.get_threshold()[0] == memory.YOUNG_EVERY


class Line:
    """Of a backlog: in no ring, but what a collection looks at."""

    def __init__(self) -> None:
        self.entries: list[object] = []


def test_a_backlog_causes_few_collections():
    """Fifty thousand lines wait, and twice as many come and go, some hundred at a time; no collection is full."""
    memory.freeze_startup_objects()
    waiting = deque(Line() for _ in range(50_000))
    before = gc.get_stats()
    for _ in range(100_000 // 500):
        waiting.extend(Line() for _ in range(500))
        in_flight = [Line() for _ in range(500)]
        for _ in in_flight:
            waiting.popleft()
    after = gc.get_stats()
    assert after[2]["collections"] == before[2]["collections"]
    assert after[0]["collections"] - before[0]["collections"] <= 25


HOLES = """
import ctypes, sys
from tidemill.runtime.memory import return_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
if sys.argv[1] == "tuned":
    return_freed_memory()
libc.free(libc.malloc(ctypes.c_size_t(31 << 20)))
blocks = []
for _ in range(100):
    blocks.append(block := libc.malloc(ctypes.c_size_t(1 << 20)))
    ctypes.memset(block, 1, 1 << 20)
    ctypes.memset(libc.malloc(ctypes.c_size_t(1000)), 1, 1000)
for block in blocks:
    libc.free(block)
with open("/proc/self/status", encoding="ascii") as file:
    print(next(line.split()[1] for line in file if line.startswith("VmRSS")))
"""
"""Large blocks are freed, and small ones between them stay."""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version") or sys.platform != "linux", reason="needs glibc"
)
def test_freed_blocks_leave_the_process():
    """By default the process keeps a hundred holes of a MiB."""
    resident = {}
    for how in ("as it is", "tuned"):
        done = subprocess.run(
            [sys.executable, "-c", HOLES, how],
            capture_output=True,
            text=True,
            check=True,
            timeout=WAIT_SECONDS_MAX,
        )
        resident[how] = int(done.stdout) / 1024
    assert resident["as it is"] - resident["tuned"] > 80
