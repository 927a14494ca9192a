"""Keys of batches are wrapped with a key that is not on the log: here with those of a file, by a port with others.

The file has one key a line, 32 bytes in base64. The first wraps; all of them unwrap, so a key is replaced by a new
first line. One that is missing is looked for in the file again, so that it can be put back without a restart. Each
project's keys are wrapped with a key of its own, which is derived from the file's.
"""

import base64
import binascii
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from tidemill.sealing.cipher import KEY_BYTES, Cipher, derived_key, new_key

FILE_MODE: Final = 0o600
NAME_CHARS: Final = 16


class KeyUnavailable(OSError):
    """A key cannot be unwrapped at the moment: what wraps does not answer, or does not have the key."""


class KeyFileError(Exception):
    """The file of keys cannot be used; the text says why, and quotes nothing of it."""


class KeyWrapper(Protocol):
    """Wraps the keys of batches, as a key management service does. A `place` has to be the same both times."""

    async def wrap(self, project: str, place: str, key: bytes) -> tuple[str, bytes]:
        """Wrap a key.

        Returns:
            The name of what wraps it, and the wrapped key.

        Raises:
            KeyUnavailable: It does not answer.
        """
        ...

    async def unwrap(self, project: str, place: str, name: str, wrapped: bytes) -> bytes:
        """The key.

        Raises:
            KeyUnavailable: It does not answer, or has nothing of that name.
            Damaged: It is not what was wrapped there.
        """
        ...


class FileWrapper:
    """The keys of a file."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            KeyFileError: It is not there, or is no file of keys.
        """
        self._path = path
        self._keys = _read(path)
        self._first = next(iter(self._keys))
        self._ciphers: dict[tuple[str, str], Cipher] = {}

    async def wrap(self, project: str, place: str, key: bytes) -> tuple[str, bytes]:
        """See `KeyWrapper`."""
        return self._first, self._cipher(project, self._first).seal(key, place.encode())

    async def unwrap(self, project: str, place: str, name: str, wrapped: bytes) -> bytes:
        """See `KeyWrapper`."""
        if name not in self._keys:
            with suppress(KeyFileError):
                self._keys |= _read(self._path)
        if name not in self._keys:
            raise KeyUnavailable(f"the file of keys does not have the key {name}")
        return self._cipher(project, name).open(wrapped, place.encode())

    def _cipher(self, project: str, name: str) -> Cipher:
        if (known := self._ciphers.get((project, name))) is None:
            known = self._ciphers[project, name] = Cipher(derived_key(self._keys[name], f"tidemill/{project}"))
        return known


def create_key_file(path: Path) -> None:
    """Make a file with one random key, for its owner alone; one that is there stays."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "wb") as file:
        file.write(base64.b64encode(new_key()) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> dict[str, bytes]:
    """The keys of a file by their names, in its order."""
    try:
        keys = [base64.b64decode(line, validate=True) for line in path.read_text("ascii").split()]
    except (OSError, UnicodeDecodeError, binascii.Error) as error:
        raise KeyFileError(f"{path} cannot be read as keys ({type(error).__name__})") from error
    if not keys or any(len(key) != KEY_BYTES for key in keys):
        raise KeyFileError(f"{path}: each line has to be {KEY_BYTES} random bytes in base64")
    return {_name(key): key for key in keys}


def _name(key: bytes) -> str:
    """What a key is known by: it says nothing about the key."""
    return hashlib.sha256(b"tidemill key name\0" + key).hexdigest()[:NAME_CHARS]
