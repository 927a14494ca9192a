"""The data folder of one installation: who holds it, its keys, and the file that tells scripts where all is.

DATA/lock         held while it is in use                         DATA/run.json  there while it runs
DATA/api_key      made once, readable by its owner alone          DATA/logs/     what each process prints
DATA/signing_key  likewise: what the api signs keys and tokens with
"""

import fcntl
import json
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tidemill.configuration import signing_keys
from tidemill.schemas.resources import access
from tidemill.schemas.signing import Signer
from tidemill.storage import ownership

API_KEY = "api_key"
BELOW_BYTES_MAX = 512
"""The longest path below the data folder: topics and objects of the store have long names."""


class FolderError(Exception):
    """The folder cannot be used; the text says why."""


@contextmanager
def locked(data: Path) -> Iterator[str | None]:
    """Make the folder where it is missing and hold it; the kernel lets go of it however the process ends.

    Yields:
        What the operator should know of the folder, where others could look into it before.

    Raises:
        FolderError: Another process holds it, it cannot be made, or another user has his hands in it.
    """
    if fault := _unusable(data):
        raise FolderError(f"the folder {data} cannot be used: {fault}; choose another with --data.")
    try:
        word = ownership.make_private(data)
        (data / "logs").mkdir(exist_ok=True)
        file = (data / "lock").open("a+", encoding="ascii")
    except OSError as error:
        raise FolderError(f"the folder {data} cannot be used: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise FolderError(
                f"the folder {data} is in use by another `tidemill up` (process {holder}); "
                "stop that one, or choose another folder with --data."
            ) from error
        # On a full disk the next one is not told who holds it, and that is all.
        with suppress(OSError):
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        yield word


def _unusable(data: Path) -> str | None:
    """What is wrong with the path itself; None where nothing is."""
    try:
        length = len(str(data).encode())
    except UnicodeEncodeError:
        return "its path is not UTF-8"
    if any(unicodedata.category(char) == "Cc" for char in str(data)):
        return "its path has a line break or another control character"
    if length > (most := os.pathconf("/", "PC_PATH_MAX") - BELOW_BYTES_MAX):
        return f"its path has {length} bytes, and {most} are the most that leave room for what is below it"
    return None


def kept_key(data: Path) -> tuple[str, bool]:
    """The installation's own key, and whether it was made just now: when it is first asked for."""
    return _kept(data / API_KEY, access.new_secret)


def kept_signing_key(data: Path) -> Path:
    """The file with the private key that the api signs with; made when it is first asked for."""
    _kept(data / signing_keys.KEPT, lambda: Signer.made().text)
    return data / signing_keys.KEPT


def _kept(file: Path, make: Callable[[], str]) -> tuple[str, bool]:
    try:
        if kept := file.read_text("ascii").strip():
            return kept, False
    except FileNotFoundError:
        pass
    made = make()
    _write(file, f"{made}\n")
    return made, True


def write_run(data: Path, content: dict[str, Any]) -> None:
    """Replace `run.json` as a whole."""
    _write(data / "run.json", json.dumps(content, indent=1) + "\n")


def remove_run(data: Path) -> None:
    """Remove `run.json`: nothing runs here."""
    (data / "run.json").unlink(missing_ok=True)


def _write(file: Path, text: str) -> None:
    """Put a file in place as a whole, readable by its owner alone."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w") as new:
            new.write(text)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
