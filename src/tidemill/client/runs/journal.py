"""The journal of a run, from which the same command resumes: `out.jsonl.tidemill/` beside the output.

For a run to stdout it is a folder in the user's state directory, named by a hash of the job.

| file | holds |
|---|---|
| `plan.json` | the job and its shards; written once, atomically |
| `journal.jsonl` | one line per step of a shard, on disk before the next step begins |
| `000007.output.jsonl`, `000007.errors.jsonl` | the results of a shard |
| `delivering` | exists once the run has begun to write its output files |

A resumed run follows the batches that the journal knows. A batch that was requested without an answer is
requested again under the same idempotency key, so the service returns the batch it may have created.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, Self

import msgspec

from tidemill import ownership
from tidemill.client.errors import COMMANDS, UsageError, Wording
from tidemill.client.runs.outcome import BatchResult
from tidemill.client.runs.plan import Shard
from tidemill.schemas import UNREADABLE
from tidemill.storage.atomic_file import replacing

LAYOUT: Final = 4
KEPT_SECONDS: Final = 30 * 86_400
"""A journal in the user's state directory that is unused for this long is removed."""


class Job(msgspec.Struct, frozen=True):
    """The work of a run; only an equal job resumes it."""

    sha256: str
    """Hash of the input."""
    base_url: str
    endpoint: str
    window: str | None
    """None for the usual one of the service."""
    dedupe: str | None = None
    callback: str | None = None
    """URL that the service calls when a batch of the run ends."""
    output_uri: str | None = None
    """Folder of a bucket that the service copies the results of each batch to."""
    output_format: str | None = None
    """Format of these copies."""
    rerun_of: str | None = None
    """The batch whose lines this run rephrases."""
    metadata: tuple[tuple[str, str], ...] = ()
    """Sorted."""


class Plan(msgspec.Struct, frozen=True):
    """A job and its shards."""

    job: Job
    window: str
    """The completion window of its batches."""
    key: str
    """Prefix of the idempotency keys of its batches."""
    shards: list[Shard]
    layout: int = LAYOUT

    @property
    def lines(self) -> int:
        """Lines of all shards."""
        return sum(shard.lines for shard in self.shards)


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of a shard; each step replaces its predecessor."""

    shard: int
    file: str | None = None
    """Id of the uploaded input."""
    is_requested: bool = False
    """Whether a request to create the batch may have reached the service."""
    batch: str | None = None
    result: BatchResult | None = None
    """The result of the batch, once its files are downloaded."""


_plans = msgspec.json.Decoder(Plan)
_steps = msgspec.json.Decoder(Step)


class Journal:
    """The folder, locked by one process; a context manager."""

    def __init__(self, folder: Path, wording: Wording = COMMANDS) -> None:
        """Entering it creates the folder; see `folder_of`."""
        self.folder = folder
        self._wording = wording
        self._steps: dict[int, Step] = {}
        self._file: BinaryIO

    def __enter__(self) -> Self:
        """Create and lock the folder.

        Raises:
            UsageError: Another process or user owns the folder, or it cannot be created.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not ownership.is_ours(self.folder.lstat()):
                step = f"choose another path with {self._wording.output}"
                raise UsageError(f"{self.folder} belongs to another user: {step}")
            file = self._path.open("a+b")
        except OSError as error:
            raise UsageError(f"{self.folder}: {error.strerror}") from error
        if not _locked(file, self._path):
            file.close()
            raise UsageError(f"{self.folder}: another run is using it")
        self._file = file
        self._steps = _read(file)
        return self

    def __exit__(self, *_: object) -> None:
        # Without a plan there is nothing to resume. A folder that was removed may be another run's by now.
        if not self._file.closed and not self._plan.exists():
            self.remove()
        self._file.close()

    def plan(self, job: Job) -> Plan | None:
        """The plan of the run to resume; None if there is none.

        Raises:
            UsageError: It belongs to another job, or to another version of this program.
        """
        try:
            plan = _plans.decode(self._plan.read_bytes())
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            raise UsageError(f"{self.folder} cannot be read; {self._wording.again} starts over") from error
        if (plan.job, plan.layout) != (job, LAYOUT):
            message = "belongs to a run of another input, with other options or on another service"
            raise UsageError(f"{self.folder} {message}; {self._wording.again} starts over")
        return plan

    def start(self, plan: Plan) -> None:
        """Save the plan of a new run."""
        with replacing(self._plan) as file:
            file.write(msgspec.json.encode(plan))

    @property
    def has_batches(self) -> bool:
        """Whether the service has a batch of this run, or may have one."""
        return any(step.batch or step.is_requested for step in self._steps.values())

    @property
    def running(self) -> list[str]:
        """Ids of the batches of this run whose results are not here yet."""
        return [step.batch for step in self._steps.values() if step.batch and step.result is None]

    @property
    def delivers(self) -> bool:
        """Whether the run has begun to write its output files, so that existing ones are its own."""
        return (self.folder / "delivering").exists()

    def deliver(self) -> None:
        """Note that the run begins to write its output files."""
        (self.folder / "delivering").touch()

    def step(self, shard: int) -> Step:
        """The state of a shard."""
        return self._steps.get(shard, Step(shard=shard))

    def note(self, step: Step) -> Step:
        """Save a step; it is on disk on return."""
        self._file.write(msgspec.json.encode(step) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._steps[step.shard] = step
        return step

    def results(self, shard: int) -> tuple[Path, Path]:
        """Paths of the output and the errors of a shard."""
        return self.folder / f"{shard:06}.output.jsonl", self.folder / f"{shard:06}.errors.jsonl"

    def forget(self) -> None:
        """Discard the run; keeps the folder locked."""
        self._plan.unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self._path:
                path.unlink()
        self._file.truncate(0)
        self._steps = {}

    def remove(self) -> None:
        """Remove the folder of a finished run."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._file.close()

    @property
    def _path(self) -> Path:
        return self.folder / "journal.jsonl"

    @property
    def _plan(self) -> Path:
        return self.folder / "plan.json"


def folder_of(output: Path | None, job: Job, environ: Mapping[str, str]) -> Path:
    """The folder of a run's journal: beside the output file; for stdout in the state directory, named by the job.

    `XDG_STATE_HOME` is the state directory (XDG Base Directory Specification).
    """
    if output is not None:
        return output.with_name(f"{output.name}.tidemill")
    return state_folder(hashlib.sha256(msgspec.json.encode(job)).hexdigest(), environ)


def state_folder(name: str, environ: Mapping[str, str]) -> Path:
    """The folder of a run in the state directory, by a hash; removes those that are unused for `KEPT_SECONDS`."""
    state = Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tidemill"
    with suppress(OSError):
        for old in state.iterdir():
            if time.time() - old.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    return state / name[:32]


@contextmanager
def locked_folder(job: str, command: str) -> Iterator[Path]:
    """The folder of a job in the user's state directory, which one process uses at a time.

    Raises:
        UsageError: Another process uses it; the text says that the `command` is running.
    """
    folder = state_folder(hashlib.sha256(job.encode()).hexdigest(), os.environ)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
    except BlockingIOError as error:
        raise UsageError(f"another {command} is running") from error


def _locked(file: BinaryIO, path: Path) -> bool:
    """Lock an open file; False if another process has locked it or removed it meanwhile."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _read(file: BinaryIO) -> dict[int, Step]:
    """The last step of each shard; truncates a last line that a crash left incomplete."""
    file.seek(0)
    steps: dict[int, Step] = {}
    whole = 0
    for line in file:
        try:
            if not line.endswith(b"\n"):
                break
            step = _steps.decode(line)
        except UNREADABLE:
            break
        steps[step.shard] = step
        whole += len(line)
    file.truncate(whole)
    return steps
