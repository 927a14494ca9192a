"""The folder beside an output that a run of many batches remembers itself in: `out.jsonl.tidemill/`.

| file | holds |
|---|---|
| `plan.json` | the input as it was, where it goes, and its pieces; written once, in one step |
| `journal.jsonl` | a line for each step of a piece, on disk before the next step |
| `000007.output.jsonl`, `000007.errors.jsonl` | the results of a piece |

A run that was killed goes on from here: a piece whose batch is known is not made again, and one that was asked for
without an answer is asked for again, under the same idempotency key.
"""

import fcntl
import os
import shutil
from pathlib import Path
from typing import BinaryIO, Final, Self

import msgspec

from tidemill.client.place import InputFault
from tidemill.client.plan import Piece

LAYOUT: Final = 1


class Job(msgspec.Struct, frozen=True):
    """What was asked for: a run goes on only with the same."""

    source: str
    size: int
    modified_ns: int
    base_url: str
    endpoint: str
    window: str


class Plan(msgspec.Struct, frozen=True):
    """A job and its pieces."""

    job: Job
    key: str
    """What the idempotency keys of its batches begin with."""
    pieces: list[Piece]
    layout: int = LAYOUT

    @property
    def lines(self) -> int:
        """Of all pieces."""
        return sum(piece.lines for piece in self.pieces)


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a piece; each step says all of it."""

    piece: int
    file: str | None = None
    """The uploaded input."""
    batch: str | None = None
    status: str | None = None
    """How the batch ended, once its results are here."""
    completed: int = 0
    """Lines of the output."""
    failed: int = 0
    """Lines that were run and failed."""
    errors: int = 0
    """Lines of the error file."""
    tokens: tuple[int, int] = (0, 0)
    """Read and written."""
    faults: tuple[str, ...] = ()
    """What was wrong with the input or with the results."""
    is_inexact: bool = False
    """Whether the results do not hold each line once."""


_plans = msgspec.json.Decoder(Plan)
_steps = msgspec.json.Decoder(Step)


class Journal:
    """The folder, held by one process; a context manager."""

    def __init__(self, output: Path) -> None:
        """Nothing is touched before it is entered.

        Args:
            output: The output file that the folder belongs to.
        """
        self.folder = folder_of(output)
        self._steps: dict[int, Step] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        """Take the folder.

        Raises:
            InputFault: Another process has it.
        """
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "journal.jsonl"
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise InputFault(f"{self.folder}: another run is at work on it") from error
        self._file = file
        self._steps = _read(file)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def plan(self, job: Job) -> Plan | None:
        """The plan that was begun; None where there is none yet.

        Raises:
            InputFault: It is of another job, or of another version of this program.
        """
        try:
            plan = _plans.decode((self.folder / "plan.json").read_bytes())
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise InputFault(f"{self.folder} cannot be read; remove it to begin anew") from error
        if (plan.job, plan.layout) != (job, LAYOUT):
            message = "belongs to a run of another input, or to another service; remove it to begin anew"
            raise InputFault(f"{self.folder} {message}")
        return plan

    def begin(self, plan: Plan) -> None:
        """Remember a new plan."""
        path = self.folder / "plan.json"
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(msgspec.json.encode(plan))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)

    def step(self, piece: int) -> Step:
        """What is known of a piece."""
        return self._steps.get(piece, Step(piece=piece))

    def note(self, step: Step) -> Step:
        """Remember a step; it is on disk on return."""
        assert self._file is not None
        self._file.write(msgspec.json.encode(step) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._steps[step.piece] = step
        return step

    def results(self, piece: int) -> tuple[Path, Path]:
        """Where the output and the errors of a piece lie."""
        return self.folder / f"{piece:06}.output.jsonl", self.folder / f"{piece:06}.errors.jsonl"

    def remove(self) -> None:
        """Forget everything: the results are where they are wanted."""
        shutil.rmtree(self.folder, ignore_errors=True)


def folder_of(output: Path) -> Path:
    """Where the journal of an output file lies."""
    return output.with_name(f"{output.name}.tidemill")


def _read(file: BinaryIO) -> dict[int, Step]:
    """The last step of each piece; what a crash left of a last line is cut off."""
    file.seek(0)
    steps: dict[int, Step] = {}
    whole = 0
    for line in file:
        try:
            if not line.endswith(b"\n"):
                break
            step = _steps.decode(line)
        except msgspec.MsgspecError:
            break
        steps[step.piece] = step
        whole += len(line)
    file.truncate(whole)
    return steps
