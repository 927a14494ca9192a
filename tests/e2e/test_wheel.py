"""Wheel and sdist: reproducible builds; the wheel alone, in an empty folder, runs a batch to its end."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from support.waiting import WAIT_SECONDS_MAX, wait_until
from uv import find_uv_bin

from tidemill.local.embedded import jars

ROOT = Path(__file__).resolve().parents[2]
EPOCH = "1764374400"
LINES = 20
EMBED = "/v1/embeddings"


def run(command, cwd, **environ):
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environ or None,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def build(source, folder):
    """Wheel and sdist of a source tree, by name."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    run(command, source, **os.environ, SOURCE_DATE_EPOCH=EPOCH)
    return {file.name: file for file in folder.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("first"))


def test_a_build_can_be_repeated(built, tmp_path):
    """From the sdist, in another folder with other times, both have the same bytes."""
    (sdist,) = (file for name, file in built.items() if name.endswith(".tar.gz"))
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    for file in source.rglob("*"):
        if not file.is_symlink():
            os.utime(file)
    again = build(source, tmp_path / "again")
    assert again.keys() == built.keys()
    for name, file in built.items():
        assert file.read_bytes() == again[name].read_bytes(), name


@pytest.mark.kafka
@pytest.mark.e2e
def test_the_wheel_alone_brings_a_batch_to_its_end(built, tmp_path):
    """In an empty folder, with the demo models, and nothing compiled; the dependencies are those of the lock."""
    began = time.monotonic()
    (wheel,) = (file for name, file in built.items() if name.endswith(".whl"))
    (folder := tmp_path / "empty").mkdir()
    python = tmp_path / "venv" / "bin" / "python"
    run([find_uv_bin(), "venv", "--python", sys.executable, tmp_path / "venv"], tmp_path)
    install = [find_uv_bin(), "pip", "install", "--python", python, "--only-binary", ":all:"]
    lock = ["--constraints", str(ROOT / "requirements.lock")]
    run([*install, *lock, f"tidemill[demo] @ file://{wheel}"], tmp_path)
    program = str(python.with_name("tidemill"))
    environ = {"PATH": os.defpath, "HOME": str(folder), "TIDEMILL_CACHE": str(jars.cache_folder())}
    said = run([program, "upgrade", "--check"], folder, **environ)
    assert ".tidemill has no data yet" in said
    log = tmp_path / "up.log"
    with log.open("wb") as out:
        up = subprocess.Popen([program, "up", "--port", "0"], cwd=folder, env=environ, stdout=out, stderr=out)
    try:
        wait_until(
            lambda: b"Tidemill is ready at" in log.read_bytes() or up.poll() is not None,
            what="the start",
        )
        assert up.poll() is None, log.read_text()
        body = {"model": "wordllama-256"}
        lines = [
            {"custom_id": str(number), "method": "POST", "url": EMBED, "body": {**body, "input": f"text {number}"}}
            for number in range(LINES)
        ]
        (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        run([program, "run", "in.jsonl", "-o", "out.jsonl"], folder, **environ)
        found = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
        assert [line["custom_id"] for line in found] == [str(number) for number in range(LINES)]
        assert {len(line["response"]["body"]["data"][0]["embedding"]) for line in found} == {256}
        sys.stdout.write(f"from a wheel to the first result: {time.monotonic() - began:.1f} s\n")
        assert "reads it" in run([program, "upgrade", "--check"], folder, **environ)
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(WAIT_SECONDS_MAX)
    assert up.returncode == 0, log.read_text()
