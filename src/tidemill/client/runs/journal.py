"""The folder that a run remembers itself in: `out.jsonl.tidemill/` beside its output.

Where results go to stdout it is a folder of the user's state, named by the job.

| file | holds |
|---|---|
| `plan.json` | the job and its pieces; written once, in one step |
| `journal.jsonl` | a line for each step of a piece, on disk before the next step |
| `000007.output.jsonl`, `000007.errors.jsonl` | the results of a piece |
| `delivering` | is there from when results are put where they are wanted |

A run that was left or killed goes on from here: a piece whose batch is known is not made again, and one that was
asked for without an answer is asked for again, under the same idempotency key.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, Self

import msgspec

from tidemill.client.runs.outcome import End
from tidemill.client.runs.paths import InputFault
from tidemill.client.runs.plan import Piece
from tidemill.storage import ownership

LAYOUT: Final = 2
KEPT_SECONDS: Final = 30 * 86_400
"""A job in the user's state that nothing has gone on with for so long is forgotten."""


class Job(msgspec.Struct, frozen=True):
    """What was asked for: a run goes on only with the same."""

    sha256: str
    """Of the input's bytes."""
    base_url: str
    endpoint: str
    window: str
    metadata: tuple[tuple[str, str], ...] = ()
    """Sorted."""


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
    end: End | None = None
    """How the batch ended, once its results are here."""


_plans = msgspec.json.Decoder(Plan)
_steps = msgspec.json.Decoder(Step)


class Journal:
    """The folder, held by one process; a context manager."""

    def __init__(self, folder: Path) -> None:
        """Nothing is touched before it is entered; see `folder_of`."""
        self.folder = folder
        self._steps: dict[int, Step] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        """Take the folder.

        Raises:
            InputFault: Another process or another user has it, or it cannot be made.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not ownership.is_ours(self.folder.lstat()):
                raise InputFault(f"{self.folder} belongs to another user: choose another place with -o")
            file = self._path.open("a+b")
        except OSError as error:
            raise InputFault(f"{self.folder}: {error.strerror}") from error
        if not _locked(file, self._path):
            file.close()
            raise InputFault(f"{self.folder}: another run is at work on it")
        self._file = file
        self._steps = _read(file)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            # Where nothing was begun, nothing is to be gone on with.
            if not self._plan.exists():
                self.remove()
            else:
                self._close()

    def plan(self, job: Job) -> Plan | None:
        """The plan that was begun; None where there is none yet.

        Raises:
            InputFault: It is of another job, or of another version of this program.
        """
        try:
            plan = _plans.decode(self._plan.read_bytes())
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise InputFault(f"{self.folder} cannot be read; --again begins anew") from error
        if (plan.job, plan.layout) != (job, LAYOUT):
            message = "belongs to a run of another input, with other options or at another service"
            raise InputFault(f"{self.folder} {message}; --again begins anew")
        return plan

    def begin(self, plan: Plan) -> None:
        """Remember a new plan."""
        fresh = self._plan.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(msgspec.json.encode(plan))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._plan)

    @property
    def has_batches(self) -> bool:
        """Whether a batch is known."""
        return any(step.batch for step in self._steps.values())

    @property
    def delivers(self) -> bool:
        """Whether results were begun to be put where they are wanted: what lies there is this run's."""
        return (self.folder / "delivering").exists()

    def deliver(self) -> None:
        """Note that it begins now."""
        (self.folder / "delivering").touch()

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

    def forget(self) -> None:
        """Begin anew; the folder stays this process's."""
        assert self._file is not None
        self._plan.unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path != self._path and path.is_file():
                path.unlink()
        self._file.truncate(0)
        self._steps = {}

    def remove(self) -> None:
        """Forget everything: the results are where they are wanted."""
        shutil.rmtree(self.folder, ignore_errors=True)
        # From now on another run may have a folder there.
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def _path(self) -> Path:
        return self.folder / "journal.jsonl"

    @property
    def _plan(self) -> Path:
        return self.folder / "plan.json"


def folder_of(output: Path | None, job: Job, environ: Mapping[str, str]) -> Path:
    """Where the journal of a run lies.

    Args:
        output: The output file that it belongs to; None is stdout.
        job: Names the folder where there is no output file.
        environ: The environment, which may say where state is kept (XDG Base Directory Specification).
    """
    if output is not None:
        return output.with_name(f"{output.name}.tidemill")
    state = Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tidemill"
    with suppress(OSError):
        for old in state.iterdir():
            if time.time() - old.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    return state / hashlib.sha256(msgspec.json.encode(job)).hexdigest()[:32]


def _locked(file: BinaryIO, path: Path) -> bool:
    """Lock a file that was opened at a path; False where another process has it, or has removed it since."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


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
