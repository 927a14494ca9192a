"""The data folder of an installation: its lock, its format, its keys, and `run.json` with its addresses.

DATA/lock             locked while in use                    DATA/run.json  exists while it runs
DATA/format.json      written once the folder has its keys   DATA/logs/     output of each process
DATA/api_key          created once, readable by its owner only
DATA/signing_key      likewise: the key that the api signs with
DATA/encryption_keys  likewise: the keys that wrap those of batches
"""

import json
import os
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from tidemill import __version__, ownership
from tidemill.configuration import signing_keys
from tidemill.configuration.catalog import SETTINGS_FILE
from tidemill.schemas.log.signing import Signer
from tidemill.schemas.resources import access
from tidemill.sealing.wrapping import KEY_FILE, new_key_text
from tidemill.storage.atomic_file import PARTIAL, write_private
from tidemill.storage.locked_directory import LOCK, FolderLocked, lock
from tidemill.terminal import printable

API_KEY = "api_key"
KEY_FILES = (API_KEY, signing_keys.KEPT, KEY_FILE)
FORMAT = 1
"""Number of the format that this version reads and writes; a change that an older or newer version would misread
takes the next one."""
FORMAT_FILE = "format.json"
FORMAT_BYTES_MAX = 4096
RECORDS = ("kafka/log", "state")
"""Folders that only an installation with data has. Not the store: an operator may link it beforehand."""
MADE_BY_SYSTEMS = {"lost+found", ".DS_Store", ".directory", ".snapshot", ".gitignore", ".gitkeep"}
KNOWN = {LOCK, "logs", "store", "run.json", *KEY_FILES, *MADE_BY_SYSTEMS}
"""What a folder without a format may have: the rest of an interrupted start, and what an operator puts there;
also the settings file, and the copies of it that editors make."""
BELOW_BYTES_MAX = 512
"""Room for paths below the data folder: topics and objects of the store have long names."""


class FolderError(Exception):
    """The folder is unusable; the text says why."""


@dataclass(frozen=True)
class Written:
    """The content of `format.json`: the format of a folder, and the last Tidemill that started there."""

    format: int
    version: str
    keys: tuple[str, ...] = ()
    """The key files that the folder has had: an operator who sets a key needs no file."""


def written(data: Path) -> Written | None:
    """The format of an existing folder; None if it has no data yet.

    Raises:
        FolderError: This version cannot read the folder. It changes nothing there.
    """
    file = data / FORMAT_FILE
    try:
        if not file.exists():
            if any((data / name).exists() for name in RECORDS):
                raise FolderError(f"the data in {data} has no format number: {_UNNUMBERED}")
            if other := _foreign(data):
                raise FolderError(
                    f"the folder {data} has other files, like {printable(other)}, which `tidemill up` would close "
                    "to other users. Nothing was changed; choose a new or an empty folder with --data."
                )
            return None
        found = _parsed(_beginning(file)) if file.is_file() else None
    except OSError as error:
        raise FolderError(f"{file} cannot be read: {error.strerror}") from error
    if found is None:
        raise FolderError(f"{file} is damaged; restore it from a backup of the folder.")
    if found.format > FORMAT:
        raise FolderError(
            f"the data in {data} has format {found.format}, written by Tidemill {printable(found.version)}; this "
            f"one, {__version__}, reads format {FORMAT}. Nothing was changed; install that version or a later one."
        )
    return found


def _foreign(data: Path) -> str | None:
    """A file of a folder without a format that is not Tidemill's; None if it has none."""
    names = {each.name for each in data.iterdir()} if data.is_dir() else set()
    ours = {name for name in names if name in KNOWN or SETTINGS_FILE in name or name.endswith(PARTIAL)}
    return min(names - ours, default=None)


_UNNUMBERED = (
    f"{FORMAT_FILE} was not copied with it; or a Tidemill from before the first release wrote it, and only that "
    "one can read it. Nothing was changed; copy that file, too, or choose another folder with --data."
)


def _beginning(file: Path) -> bytes:
    with file.open("rb") as content:
        return content.read(FORMAT_BYTES_MAX)


def _parsed(content: bytes) -> Written | None:
    try:
        found = orjson.loads(content)
        number, version, keys = found["format"], found["version"], found.get("keys", [])
    except (ValueError, KeyError, TypeError):
        return None
    is_good = type(number) is int and number >= 1 and isinstance(version, str) and isinstance(keys, list)
    return Written(number, version, tuple(keys)) if is_good else None


def stamp(data: Path) -> None:
    """Write the format, this version and which key files there are, unless they are there.

    Raises:
        FolderError: The folder cannot be written.
    """
    before = written(data)
    had = before.keys if before else ()
    made = (name for name in KEY_FILES if name not in had and (data / name).exists())
    now = Written(FORMAT, __version__, (*had, *made))
    if before == now:
        return
    try:
        write_private(data / FORMAT_FILE, json.dumps(asdict(now)) + "\n")
    except OSError as error:
        # On a full disk a later start writes its version.
        if before is None:
            raise FolderError(f"the folder {data} cannot be used: {error}") from error


@contextmanager
def locked(data: Path) -> Iterator[str | None]:
    """Create the folder if needed and lock it; the kernel releases the lock when the process ends.

    Yields:
        A warning for the operator if other users could read the folder before; else None.

    Raises:
        FolderError: Another process has locked it, it cannot be created, it belongs to another user, or another
            version wrote it (see `written`).
    """
    if fault := _unusable(data):
        raise FolderError(f"the folder {data} cannot be used: {fault}; choose another with --data.")
    # Checked before anything in the folder is touched.
    written(data)
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
        fault = error.strerror or str(error)
        raise FolderError(f"the folder {data} cannot be used: {fault}; choose another with --data.") from error
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
    if os.path.isfile(data):  # noqa: PTH113  it raises no error in a folder that is closed to this user
        return "it is a file"
    return None


def kept_key(data: Path) -> tuple[str, bool]:
    """The API key of the installation, and whether this call created it, as the first start does.

    Raises:
        FolderError: A file that the folder has had is gone, or cannot be read.
    """
    return _kept(data, API_KEY, access.new_secret, "clients have it (`tidemill keys make` prints another)")


def kept_signing_key(data: Path) -> Path:
    """The file with the private key that the api signs with; raises as `kept_key` does."""
    loss = "without it all API keys that were made are unknown (`tidemill keys init` prints another)"
    _kept(data, signing_keys.KEPT, lambda: Signer.made().text, loss)
    return data / signing_keys.KEPT


def keep_encryption_keys(data: Path) -> None:
    """Create the file with the keys that wrap those of batches; raises as `kept_key` does."""
    loss = (
        "without it no sealed line and no webhook's secret is readable (`openssl rand -base64 32` prints another)"
    )
    _kept(data, KEY_FILE, new_key_text, loss)


def _kept(data: Path, name: str, make: Callable[[], str], loss: str) -> tuple[str, bool]:
    file, fault = data / name, "is empty"
    try:
        if kept := file.read_text("ascii").strip():
            return kept, False
    except FileNotFoundError:
        fault = "leads to a file that is not there" if file.is_symlink() else "is missing"
    except OSError as error:
        raise FolderError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FolderError(f"{file} cannot be read: it is not ASCII") from error
    # A link may lead to a disk that is not mounted now.
    before = written(data)
    if file.is_symlink() or (before is not None and (name in before.keys or file.exists())):
        raise FolderError(
            f"{file} {fault}. Restore it from a backup, or mount its disk: {loss}. "
            "To begin with a new key, write it into this file."
        )
    made = make()
    write_private(file, f"{made}\n")
    return made, True


def write_run(data: Path, content: dict[str, Any]) -> None:
    """Replace `run.json` atomically."""
    write_private(data / "run.json", json.dumps(content, indent=1) + "\n")


def remove_run(data: Path) -> None:
    """Remove `run.json`, since nothing runs here any more."""
    (data / "run.json").unlink(missing_ok=True)
