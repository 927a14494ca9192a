"""Break what the promise rests on, one piece at a time, and see that the simulations notice.

`python -m chaos.mutations` copies the package, makes one change in the copy, runs the simulations against it, and
prints which of them failed. The exit code is 1 where a change was noticed by none.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("api", "ingest", "processors", "results", "schemas", "src", "tests/support", "tests/unit")
SUITES = {
    "tests/unit/test_simulation.py": "the whole way",
    "tests/unit/results/test_stage.py": "results",
    "tests/unit/processors/test_stage.py": "processors",
}
RUN_SECONDS_MAX = 90
"""A suite that hangs has noticed."""


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One change: `old` becomes `new` in a file."""

    name: str
    file: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        name="the gate acknowledges out of order",
        file="src/tidemill/gate.py",
        old="while self._tickets and self._tickets[0].done:\n            yield self._tickets.popleft().item",
        new="self._tickets.remove(ticket)\n        yield ticket.item",
    ),
    Mutation(
        name="the table is written before the part",
        file="results/stage.py",
        old="                part = await write_part(\n",
        new=(
            "                from tidemill.schemas.part import PartRef\n"
            "                early = PartRef(number=number, failed=failed,"
            " first=min(entry[0] for entry in shelf.lines), writer=self._writer)\n"
            '                named = {"parts": (*live.state.parts, early)}\n'
            "                self._tables.put_state(live.state.model_copy(update=named))\n"
            "                await self._tables.delivered()\n"
            "                part = await write_part(\n"
        ),
    ),
    Mutation(
        name="the tally is written before its part",
        file="results/stage.py",
        old="touched = [] if live.waiting_bytes or live.state.closed else live.tally.take_touched()",
        new="touched = live.tally.take_touched()",
    ),
    Mutation(
        name="lines are acknowledged before they are in a part",
        file="results/stage.py",
        old="        live.acks.append(ack)\n        if live.waiting_bytes",
        new="        ack()\n        if live.waiting_bytes",
    ),
    Mutation(
        name="the changelog is not awaited",
        file="results/stage.py",
        old="number, chunk)\n        await self._tables.delivered()",
        new="number, chunk)",
    ),
    Mutation(
        name="the tally takes a line twice",
        file="results/tally.py",
        old="        if self._done[byte] & bit:\n            return False\n",
        new="",
    ),
    Mutation(
        name="the merge takes a line twice",
        file="results/merge.py",
        old="        if not sums.lines.mark(index.indices[end], failed=False):\n            break\n",
        new="        sums.lines.mark(index.indices[end], failed=False)\n",
    ),
    Mutation(
        name="the ledger comes after the state",
        file="results/stage.py",
        old=(
            "        offset, _ = await asyncio.gather(self._publisher.files(after, fact),"
            " self._publisher.bill(after, fact))\n"
            '        live.state = after.model_copy(update={"files_offset": offset})\n'
            "        self._tables.put_state(live.state)\n"
            "        await self._tables.delivered()\n"
        ),
        new=(
            "        offset = await self._publisher.files(after, fact)\n"
            '        live.state = after.model_copy(update={"files_offset": offset})\n'
            "        self._tables.put_state(live.state)\n"
            "        await self._tables.delivered()\n"
            "        await self._publisher.bill(after, fact)\n"
        ),
    ),
    Mutation(
        name="a part has no writer",
        file="schemas/part.py",
        old='writer = f"-{part.writer}" if part.writer else ""',
        new='writer = ""',
    ),
    Mutation(
        name="a batch that is over is compacted again",
        file="results/stage.py",
        old=(
            "        if live.state.is_over:\n"
            "            self._over(live)\n"
            "            live.release()\n"
            "        elif live.state.closed:"
        ),
        new="        if live.state.closed:",
    ),
    Mutation(
        name="processors remember nothing that is done",
        file="processors/ledger.py",
        old="        return bool(chunks.get(chunk, 0) >> bit & 1)",
        new="        return False",
    ),
    Mutation(
        name="processors read nothing back",
        file="processors/seats.py",
        old="        return self._recall.knows(",
        new="        return True or self._recall.knows(",
    ),
    Mutation(
        name="a copy beyond the end is taken for new",
        file="processors/seats.py",
        old="record.offset >= end and created is not None and created >= self._assigned_at",
        new="record.offset >= end",
    ),
    Mutation(
        name="a line is done before the log has its outcome",
        file="processors/shipping.py",
        old="        await self._outbox.send(\n",
        new=(
            "        self._arrived(parcel.receipts)\n"
            "        parcel.receipts = []\n"
            "        await self._outbox.send(\n"
        ),
    ),
    Mutation(
        name="a closed batch takes lines",
        file="results/fold.py",
        old="return not self.closed and (",
        new="return (",
    ),
    Mutation(
        name="a partition is left before its calls have ended",
        file="processors/stage.py",
        old="                await self._idle.wait()\n",
        new="                pass\n",
    ),
)


def caught(mutation: Mutation, folder: Path) -> str | None:
    """The first of the suites that fails with a change; None where all pass."""
    file = folder / mutation.file
    text = file.read_text("utf-8")
    assert text.count(mutation.old) == 1, f"{mutation.file} has changed: {mutation.name}"
    file.write_text(text.replace(mutation.old, mutation.new), "utf-8")
    try:
        return next((name for suite, name in SUITES.items() if not _passes(suite, folder)), None)
    finally:
        file.write_text(text, "utf-8")


def _passes(suite: str, folder: Path) -> bool:
    environ = {**os.environ, "PYTHONPATH": str(folder / "src")}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", suite]
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, timeout=RUN_SECONDS_MAX, check=False
    )
    return done.returncode == 0


def main() -> int:
    """Try all of them."""
    missed = 0
    with tempfile.TemporaryDirectory(prefix="tidemill-mutations-") as name:
        folder = Path(name)
        for part in FOLDERS:
            shutil.copytree(ROOT / part, folder / part, symlinks=True)
        shutil.copy(ROOT / "pyproject.toml", folder)
        shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
        assert all(_passes(suite, folder) for suite in SUITES), "the suites fail without a change"
        for mutation in MUTATIONS:
            suite = caught(mutation, folder)
            missed += suite is None
            sys.stdout.write(f"{mutation.name:<60}  {suite or 'NOBODY NOTICED'}\n")
            sys.stdout.flush()
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
