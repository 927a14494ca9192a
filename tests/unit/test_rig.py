"""What the fault runs do to a machine: a clock steps, a disk is slow, a disk is full, and all of it ends."""

import errno
import os
import subprocess
import sys
import time

import pytest
from chaos import disk, meddle, rig
from chaos.disk import Disk
from chaos.harness import Plan, staged
from chaos.meddle import Meddle

ASIDE_SECONDS = 60.0
"""Difference of two clocks that are read one after the other on a busy machine."""
ANSWERS = """
import sys, time
for name in map(str.strip, sys.stdin):
    began = time.monotonic()
    open(name, "w").write("x")
    print(time.time(), time.monotonic() - began, flush=True)
"""


def test_a_running_process_is_meddled_with(tmp_path):
    """Its clock is ahead or behind, alone or with all others, and its disk takes its time."""
    if meddle.missing():
        # Such a machine leaves these faults out; see below.
        return
    store = tmp_path / "store"
    store.mkdir()
    with Meddle(tmp_path, store) as meddled:
        process = subprocess.Popen(
            [sys.executable, "-c", ANSWERS],
            env={**os.environ, **meddled.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

        def ask(where):
            process.stdin.write(f"{where / 'file'}\n")
            process.stdin.flush()
            now, took = map(float, process.stdout.readline().split())
            return now - time.time(), took

        try:
            assert ask(tmp_path)[0] == pytest.approx(0, abs=ASIDE_SECONDS)
            with pytest.raises(AssertionError, match="lacks the library"):
                meddled.step(600, [os.getpid()])
            meddled.step(600)
            assert ask(tmp_path)[0] == pytest.approx(600, abs=ASIDE_SECONDS)
            meddled.step(-900, [process.pid])
            assert ask(tmp_path)[0] == pytest.approx(-300, abs=ASIDE_SECONDS)
            meddled.step(0, [process.pid])
            meddled.slow_disk(0.3)
            assert ask(tmp_path)[1] >= 0.3
            meddled.heal()
            meddled.slow_store(0.3)
            assert ask(store)[1] >= 0.3
            assert ask(tmp_path)[0] == pytest.approx(0, abs=ASIDE_SECONDS)
        finally:
            process.communicate()


def test_a_disk_is_full_and_has_space_again(tmp_path):
    """What was on it stays there, and is kept where that is asked for."""
    if disk.missing():
        return
    place, kept = tmp_path / "disk", tmp_path / "kept"
    place.mkdir()
    with Disk(place, kept=kept) as mounted:
        (place / "before").write_bytes(b"x" * 100_000)
        mounted.fill()
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (place / "more").write_bytes(b"x" * 100_000)
        mounted.empty()
        (place / "after").write_bytes(b"x" * 100_000)
    assert list(place.iterdir()) == []
    assert (kept / "before").stat().st_size == (kept / "after").stat().st_size == 100_000


def test_what_a_machine_cannot_have_is_left_out_and_said(monkeypatch):
    """In one line for each need; the other faults stay."""
    monkeypatch.setitem(rig.WHY_NOT, rig.DISK, lambda: "nobody may mount")
    monkeypatch.setitem(rig.WHY_NOT, rig.MEDDLE, lambda: "")
    told = []
    plan = staged(Plan(seed=1, faults=("kill:api", "disk-full", "clock", "store-full")), told.append)
    assert plan.faults == ("kill:api", "clock")
    assert told == ["left out: disk-full, store-full, since nobody may mount"]


def test_a_cluster_has_no_disks_and_clocks(monkeypatch):
    """Where a fault of the network is asked for, the installation is a cluster."""
    for need in rig.WHY_NOT:
        monkeypatch.setitem(rig.WHY_NOT, need, lambda: "")
    told = []
    plan = staged(Plan(seed=1, faults=("cut:api:out", "kill", "disk-full", "clock")), told.append)
    assert plan.faults == ("cut:api:out", "kill")
    assert len(told) == 2
