"""A Python with Airflow, Dagster, Prefect, LangChain and LlamaIndex, apart from the one that runs the tests."""

import hashlib
import sys
from pathlib import Path

from support.go_tools import call
from support.waiting import one_at_a_time

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements-orchestrators.lock"


def python_with_orchestrators() -> Path:
    """Its program; an installation is kept in `.cache` until the lock changes."""
    folder = ROOT / ".cache" / f"orchestrators-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    uv = str(Path(sys.executable).with_name("uv"))
    with one_at_a_time("orchestrators"):
        if not (folder / "ready").exists():
            call([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
            install = [
                uv,
                "pip",
                "install",
                "--quiet",
                "--require-hashes",
                "--python",
                str(python),
                "-r",
                str(LOCK),
            ]
            call(install)
            (folder / "ready").touch()
    return python
