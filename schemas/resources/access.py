"""API keys: their roles and their secrets.

A secret is `sk-`, 43 characters of base 62 (32 random bytes), and 6 of a checksum, by which scanners recognize a
leaked one. Only its SHA-256 is stored: 256 random bits need no slow hash.
"""

import hashlib
import math
import re
import secrets
import string
import zlib
from collections import Counter
from enum import StrEnum
from typing import Literal

from tidemill.schemas.bounds import Id, Name, Shape, Time, Word
from tidemill.schemas.ids import base62, timely_hex

PREFIX = "sk-"
CHALLENGE = 'Bearer realm="Tidemill"'
"""The header `www-authenticate` of answers to requests without a valid key; Tidemill recognizes itself by it."""
DEFAULT_PROJECT = "default"
"""The project of the key in the settings."""
RANDOM_BYTES = 32
_BASE62 = string.digits + string.ascii_letters
_RANDOM_CHARS = 43
_CHECK_CHARS = 6
_SECRET = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{_RANDOM_CHARS}}})([0-9A-Za-z]{{{_CHECK_CHARS}}})\Z")
PROJECT = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""The pattern of a project's name, which is used in headers and tables."""
_PROJECT = re.compile(PROJECT)
SET_CHARS_MIN = 24
SET_CHARS_MAX = 256
SET_BITS_MIN = 72
"""The least entropy of a key that an operator chooses; 24 random hex digits have more."""
_HINT_CHARS = (len(PREFIX) + 2, 4)


class Role(StrEnum):
    """The permissions of a key; each role includes those before it."""

    READ = "read"
    """Read the objects of its project."""
    WRITE = "write"
    """Also create and change them."""
    ADMIN = "admin"
    """Also create and revoke keys of its project."""
    OPERATOR = "operator"
    """All of these in every project, and read the usage of each."""

    def covers(self, needed: "Role") -> bool:
        """Whether this role includes `needed`."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


class ApiKey(Shape):
    """An API key without its secret, as the API shows it. Times are Unix seconds."""

    id: Id
    object: Literal["key"] = "key"
    name: Name
    project: Name
    role: Role
    hint: Word
    """The secret's first and last characters: `sk-ab…wxyz`."""
    created_at: Time
    created_by: Name | None = None
    """The key or person that made it, as the audit trail names them."""
    expires_at: Time | None = None
    revoked_at: Time | None = None

    def opens(self, now: float) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def new_key_id() -> str:
    """`key_` and 32 hex digits: 13 of the time, 19 random ones."""
    return f"key_{timely_hex()}"


def new_secret() -> str:
    """A new random secret."""
    random = base62(secrets.token_bytes(RANDOM_BYTES), _RANDOM_CHARS, _BASE62)
    return PREFIX + random + _check(random)


def is_secret(text: str) -> bool:
    """Whether the text has the form of a secret, with a valid checksum."""
    found = _SECRET.match(text)
    return found is not None and _check(found[1]) == found[2]


def weakness(secret: str) -> str | None:
    """Why a chosen key is easy to guess, by its length and Shannon entropy; None if it is not."""
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        return "it may have only printable ASCII characters, without spaces"
    if not SET_CHARS_MIN <= len(secret) <= SET_CHARS_MAX:
        return f"it has {len(secret)} characters, and needs {SET_CHARS_MIN} to {SET_CHARS_MAX}"
    shares = [count / len(secret) for count in Counter(secret).values()]
    bits = -len(secret) * sum(share * math.log2(share) for share in shares)
    if bits < SET_BITS_MIN:
        return f"its characters are too much alike: some {bits:.0f} bits of {SET_BITS_MIN}"
    return None


def digest(secret: str) -> str:
    """The SHA-256 of a secret, in hex."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def hint(secret: str) -> str:
    """The first and last characters of a secret of at least `SET_CHARS_MIN` characters."""
    head, tail = _HINT_CHARS
    return f"{secret[:head]}…{secret[-tail:]}"


def is_project(text: str) -> bool:
    """Whether the text can name a project; see `PROJECT`."""
    return _PROJECT.fullmatch(text) is not None


def _check(random: str) -> str:
    return base62(zlib.crc32(random.encode()).to_bytes(4), _CHECK_CHARS, _BASE62)
