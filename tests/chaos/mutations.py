"""Break one piece of the code at a time, and check that a test fails.

`python -m chaos.mutations` copies the package, makes one change in the copy (`mutants.py`), runs the simulations
against it, and prints which of them failed. With `--chaos` a real installation of the copy runs under faults
instead, for changes that a real run can hit; each plan first runs on an unchanged copy. The exit code is 1 if no
test noticed a change.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from chaos.mutants import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("api", "ingest", "processors", "results", "schemas", "src", "tests/support", "tests/unit")
SUITES = {
    "tests/unit/test_simulation.py": "the whole way",
    "tests/unit/results/test_partition.py": "results",
    "tests/unit/results/test_copies.py": "copies",
    "tests/unit/processors/test_dispatcher.py": "processors",
    "tests/unit/processors/partitions": "partitions",
    "tests/unit/processors/joined": "calls of several lines",
}
SUITE_SECONDS_MAX = 600
SLOWER = 4
"""A suite that takes this many times longer than without a change hangs, which counts as noticing it."""
REAL_SECONDS_MAX = 240
STOP_SECONDS_MAX = 60
FAILED = "FAILED: "


class Simulated:
    """Runs the suites in a copy of the code; the first call, before any change, sets their timeouts.

    Args:
        folder: The copy.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seconds: dict[str, float] = {}

    def __call__(self) -> str | None:
        """The first suite that fails; None if all pass."""
        for suite, name in SUITES.items():
            began = time.monotonic()
            if not _passes(suite, self._folder, self._seconds.get(suite, SUITE_SECONDS_MAX / SLOWER) * SLOWER):
                return name
            self._seconds.setdefault(suite, time.monotonic() - began)
        return None


def real(folder: Path, plan: str) -> str | None:
    """The first failure of a real run; None if there is none.

    Raises:
        RuntimeError: The run did not finish.
    """
    environ = {**os.environ, "PYTHONPATH": f"{folder / 'src'}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "chaos", *plan.split()]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        try:
            told, _ = run.communicate(timeout=REAL_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            # Like Ctrl-C, so that the run stops its installation.
            run.send_signal(signal.SIGINT)
            told, _ = run.communicate(timeout=STOP_SECONDS_MAX)
            raise RuntimeError(f"no end in {REAL_SECONDS_MAX} s: {told[-2_000:]}") from None
    found = next((line for line in told.splitlines() if line.startswith(FAILED)), None)
    if found is None and run.returncode:
        raise RuntimeError(f"exit code {run.returncode}: {told[-2_000:]}")
    return found and found.removeprefix(FAILED)


def caught(mutation: Mutation, folder: Path, look: Callable[[], str | None]) -> str | None:
    """The result of `look` while a change is in place."""
    file = folder / mutation.file
    text = file.read_text("utf-8")
    assert text.count(mutation.old) == 1, f"{mutation.file} has changed: {mutation.name}"
    file.write_text(text.replace(mutation.old, mutation.new), "utf-8")
    try:
        return look()
    finally:
        file.write_text(text, "utf-8")


def _passes(suite: str, folder: Path, seconds_max: float) -> bool:
    environ = {**os.environ, "PYTHONPATH": str(folder / "src")}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", suite]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, timeout=seconds_max, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _copy(folder: Path) -> None:
    for part in FOLDERS:
        shutil.copytree(ROOT / part, folder / part, symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")


def _tell(name: str, found: str) -> None:
    sys.stdout.write(f"{name:<60}  {found[:400]}\n")
    sys.stdout.flush()


def main() -> int:
    """Try the requested mutations."""
    arguments = argparse.ArgumentParser(prog="chaos.mutations", description=__doc__)
    arguments.add_argument("--chaos", action="store_true", help="real runs instead of simulations")
    arguments.add_argument("words", nargs="*", help="only those with one of these in their names")
    given = arguments.parse_args()
    chosen = [
        mutation
        for mutation in MUTATIONS
        if (mutation.real or not given.chaos) and any(word in mutation.name for word in given.words or [""])
    ]
    missed = 0
    with tempfile.TemporaryDirectory(prefix="tidemill-mutations-") as name:
        folder = Path(name)
        _copy(folder)
        for plan in dict.fromkeys(mutation.real if given.chaos else None for mutation in chosen):
            look = Simulated(folder) if plan is None else partial(real, folder, plan)
            found = look()
            _tell("(no change)", found or "well")
            assert found is None, "what is tried fails without a change"
            for mutation in chosen:
                if plan is None or mutation.real == plan:
                    found = caught(mutation, folder, look)
                    missed += found is None
                    _tell(mutation.name, found or "NOT CAUGHT")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
