"""Builds programs with Go from the module proxy, and keeps them in `.cache/go`: Prometheus, `promtool` and Helm.

The first build of each on a machine takes minutes of CPU; later ones take seconds, thanks to Go's own cache.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import WAIT_SECONDS_MAX, one_at_a_time

ROOT = Path(__file__).resolve().parents[2]
BUILD_SECONDS_MAX = 5_400
MODULE = Path(__file__).with_name("go")
"""Names the programs and, with their hashes, all modules: what two programs import is compiled once."""
TAGS = "remove_all_sd,enable_dns_sd"
"""Prometheus without the service discovery of clouds, which is most of its code."""
QUICK = "-gcflags=all=-N -l -dwarf=false"
"""Do not optimize. This, no debug information and no cgo save CPU time, and the programs need little."""


def tools() -> Path:
    """The folder of the programs."""
    options = ["-tags", TAGS, "-ldflags=-s -w", QUICK]
    key = hashlib.sha256(repr(options).encode() + (MODULE / "go.sum").read_bytes()).hexdigest()[:12]
    folder = ROOT / ".cache" / "go" / key
    with one_at_a_time("go"):
        if not (folder / "ready").exists():
            if shutil.which("go") is None:
                pytest.skip("Go is not installed")
            environ = {"GOBIN": str(folder), "GOWORK": "off", "CGO_ENABLED": "0"}
            call(["go", "install", "-C", str(MODULE), *options, "tool"], seconds_max=BUILD_SECONDS_MAX, **environ)
            (folder / "ready").touch()
    return folder


def promtool(*arguments: str | Path, text: str | None = None) -> str:
    """Run `promtool`, which must find no fault; returns its output."""
    return call([str(tools() / "promtool"), *map(str, arguments)], text=text)


def call(
    command: list[str], *, seconds_max: float = WAIT_SECONDS_MAX, text: str | None = None, **environ: str
) -> str:
    """Run a program that must succeed; returns its output."""
    done = subprocess.run(
        command,
        env=os.environ | environ,
        input=text,
        capture_output=True,
        text=True,
        timeout=seconds_max,
        check=False,
    )
    said = f"{done.stdout}{done.stderr}"
    assert done.returncode == 0, f"{' '.join(command)}\n{said}"
    return said


if __name__ == "__main__":
    # `make manifests` asks for the path of Helm.
    sys.stdout.write(str(tools() / "helm"))
