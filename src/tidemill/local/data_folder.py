"""The data folder of an installation: its lock, its keys, and `run.json` with its addresses.

DATA/lock         locked while in use                             DATA/run.json  exists while it runs
DATA/api_key      created once, readable by its owner only        DATA/logs/     output of each process
DATA/signing_key  likewise: the key that the api signs with
"""

import json
import os
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tidemill.configuration import signing_keys
from tidemill.schemas.log.signing import Signer
from tidemill.schemas.resources import access
from tidemill.storage import ownership
from tidemill.storage.atomic_file import write_private
from tidemill.storage.locked_directory import FolderLocked, lock

API_KEY = "api_key"
BELOW_BYTES_MAX = 512
"""Room for paths below the data folder: topics and objects of the store have long names."""


class FolderError(Exception):
    """The folder is unusable; the text says why."""


@contextmanager
def locked(data: Path) -> Iterator[str | None]:
    """Create the folder if needed and lock it; the kernel releases the lock when the process ends.

    Yields:
        A warning for the operator if other users could read the folder before; else None.

    Raises:
        FolderError: Another process has locked it, it cannot be created, or it belongs to another user.
    """
    if fault := _unusable(data):
        raise FolderError(f"the folder {data} cannot be used: {fault}; choose another with --data.")
    try:
        warning = ownership.make_private(data)
        (data / "logs").mkdir(exist_ok=True)
        descriptor = lock(data)
    except FolderLocked as error:
        raise FolderError(
            f"the folder {data} is in use by another `tidemill up` (process {error.holder}); "
            "stop that one, or choose another folder with --data."
        ) from error
    except OSError as error:
        raise FolderError(f"the folder {data} cannot be used: {error}") from error
    try:
        yield warning
    finally:
        os.close(descriptor)


def _unusable(data: Path) -> str | None:
    """The fault of the path; None if it has none."""
    try:
        length = len(str(data).encode())
    except UnicodeEncodeError:
        return "its path is not UTF-8"
    if any(unicodedata.category(char) == "Cc" for char in str(data)):
        return "its path has a line break or another control character"
    if length > (most := os.pathconf("/", "PC_PATH_MAX") - BELOW_BYTES_MAX):
        return f"its path has {length} bytes, which is more than the {most} that leave room for paths below it"
    return None


def kept_key(data: Path) -> tuple[str, bool]:
    """The API key of the installation, and whether this call created it."""
    return _kept(data / API_KEY, access.new_secret)


def kept_signing_key(data: Path) -> Path:
    """The file with the private key that the api signs with, created if missing."""
    _kept(data / signing_keys.KEPT, lambda: Signer.made().text)
    return data / signing_keys.KEPT


def _kept(file: Path, make: Callable[[], str]) -> tuple[str, bool]:
    try:
        if kept := file.read_text("ascii").strip():
            return kept, False
    except FileNotFoundError:
        pass
    made = make()
    write_private(file, f"{made}\n")
    return made, True


def write_run(data: Path, content: dict[str, Any]) -> None:
    """Replace `run.json` atomically."""
    write_private(data / "run.json", json.dumps(content, indent=1) + "\n")


def remove_run(data: Path) -> None:
    """Remove `run.json`, since nothing runs here now."""
    (data / "run.json").unlink(missing_ok=True)
