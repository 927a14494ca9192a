"""Wraps the keys of batches with the keys of a file outside the log.

Each line of the file is a key: 32 bytes in base64. The first key wraps and all keys unwrap, so a new first line
replaces a key. The file is read again for a missing key, so an operator can restore one without a restart. The
keys of each project are wrapped with a key derived from the file's.
"""

import base64
import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Final

from tidemill import credentials
from tidemill.credentials import SecretError
from tidemill.schemas.resources.waiting import Reason
from tidemill.sealing.cipher import KEY_BYTES, Cipher, derived_key, new_key

KEY_FILE: Final = "encryption_keys"
"""The key file in the data folder, unless the settings name another."""
NAME_CHARS: Final = 16


class KeyUnavailable(OSError):
    """A key cannot be unwrapped now, since the wrapping key is missing."""


def wait_reason(error: OSError) -> Reason:
    """What a batch waits for whose data cannot be stored or read: its key, or the store."""
    return Reason.KEY if isinstance(error, KeyUnavailable) else Reason.STORE


class KeyFileError(Exception):
    """The key file is invalid; the text says why, and quotes nothing of it."""


class FileWrapper:
    """The wrapping keys of a file."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            KeyFileError: It is missing or invalid.
        """
        self._path = path
        self._keys = _read(path)
        self._first = next(iter(self._keys))
        self._ciphers: dict[tuple[str, str], Cipher] = {}

    async def wrap(self, project: str, place: str, key: bytes) -> tuple[str, bytes]:
        """Wrap a key; returns the name of the wrapping key, and the wrapped key."""
        return self._first, self._cipher(project, self._first).seal(key, place.encode())

    async def unwrap(self, project: str, place: str, name: str, wrapped: bytes) -> bytes:
        """The key, given the `place` of `wrap`.

        Raises:
            KeyUnavailable: The file has no key of that name.
            Damaged: The key was not wrapped for this place.
        """
        if name not in self._keys:
            with suppress(KeyFileError):
                self._keys |= _read(self._path)
        if name not in self._keys:
            raise KeyUnavailable(f"the key file does not have the key {name}")
        return self._cipher(project, name).open(wrapped, place.encode())

    def _cipher(self, project: str, name: str) -> Cipher:
        if (known := self._ciphers.get((project, name))) is None:
            known = self._ciphers[project, name] = Cipher(derived_key(self._keys[name], f"tidemill/{project}"))
        return known


def new_key_text() -> str:
    """A random key, as a line of a key file."""
    return base64.b64encode(new_key()).decode()


def _read(path: Path) -> dict[str, bytes]:
    """The keys of a file by their names, in its order."""
    try:
        text = credentials.stripped(credentials.text_of(path))
        keys = [base64.b64decode(line, validate=True) for line in text.split()]
    except SecretError as error:
        raise KeyFileError(str(error)) from error
    except ValueError:
        keys = []
    if not keys or any(len(key) != KEY_BYTES for key in keys):
        raise KeyFileError(f"{path}: each line must be {KEY_BYTES} random bytes in base64")
    return {_name(key): key for key in keys}


def _name(key: bytes) -> str:
    """The public name of a key, a hash that does not reveal it."""
    return hashlib.sha256(b"tidemill key name\0" + key).hexdigest()[:NAME_CHARS]
