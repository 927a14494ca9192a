"""Builds programs with Go from the module proxy, and keeps them in `.cache/go`: Prometheus, `promtool` and Helm.

The first build of each on a machine takes minutes of CPU; later ones take seconds, thanks to Go's own cache.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.waiting import WAIT_SECONDS_MAX, one_at_a_time

ROOT = Path(__file__).resolve().parents[2]
BUILD_SECONDS_MAX = 5_400
QUICK = "-gcflags=all=-N -l"
"""Do not optimize. This and no cgo save a third of the CPU time of a build, and the programs need little."""


@dataclass(frozen=True)
class Module:
    """A module with programs in `cmd`."""

    path: str
    version: str
    programs: tuple[str, ...]
    tags: str = ""


PROMETHEUS = Module(
    "github.com/prometheus/prometheus",
    "v0.316.0",
    ("promtool", "prometheus"),
    # Without the service discovery of clouds, which is most of the code.
    tags="remove_all_sd,enable_dns_sd",
)
"""Prometheus 3.16.0."""
HELM = Module("helm.sh/helm/v4", "v4.3.1", ("helm",))


def tools(module: Module = PROMETHEUS) -> Path:
    """The folder of the programs of a module."""
    folder = ROOT / ".cache" / "go" / module.version
    with one_at_a_time("go"):
        if not all((folder / name).exists() for name in module.programs):
            if shutil.which("go") is None:
                pytest.skip("Go is not installed")
            packages = [f"{module.path}/cmd/{name}@{module.version}" for name in module.programs]
            options = ["-tags", module.tags, "-ldflags=-s -w", QUICK]
            environ = {"GOBIN": str(folder), "CGO_ENABLED": "0"}
            call(["go", "install", *options, *packages], seconds_max=BUILD_SECONDS_MAX, **environ)
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
    sys.stdout.write(str(tools(HELM) / "helm"))
