"""`tidemill bench` as users run it: a tiny case with both sides, in turn, as the backend counts them."""

import json
import subprocess
import sys
from pathlib import Path

from support.backend import Backend
from support.waiting import WAIT_SECONDS_MAX


def test_a_case_runs_with_both_sides(tmp_path: Path) -> None:
    """Each side makes as many calls as the case has lines, in each of two rounds; joined lines share calls."""
    saved = tmp_path / "saved.json"
    with Backend() as backend:
        command = [sys.executable, "-P", "-m", "tidemill", "bench", "--mock", backend.url, "--case", "one"]
        command += ["--case", "thousand", "--case", "embeddings-joined", "--lines-max", "1000"]
        command += ["--rounds", "2", "--save", str(saved)]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(saved.read_text())
    for name, lines in (("one", 1), ("thousand", 1_000)):
        assert found[name]["rounds"] == 2
        assert found[name]["ratio"] > 0
        for side in ("product", "bare"):
            assert found[name][side]["calls"] == lines
            assert found[name][side]["repeats"] == 0
            assert found[name][side]["cpu_ms_per_line"] >= 0
    joined = found["embeddings-joined"]
    assert joined["product"]["calls"] < joined["bare"]["calls"] == 1_000
    rows = done.stdout.splitlines()
    assert [row.split()[0] for row in rows[1:4]] == ["one", "thousand", "embeddings-joined"]
