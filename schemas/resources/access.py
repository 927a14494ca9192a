"""Keys to the API: what they let their holder do, how a secret is made, and what is kept of it.

A secret is `sk-`, 43 characters of base 62 (32 random bytes), and 6 that check them, so that a scanner can tell
a leaked one from chance. Only its SHA-256 is kept: 256 random bits need no slow hash.
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

from pydantic import BaseModel, ConfigDict

from tidemill.schemas.bounds import Id, Name, Time, Word
from tidemill.schemas.ids import timely_hex

PREFIX = "sk-"
DEFAULT_PROJECT = "default"
"""Whose the key of the settings is."""
RANDOM_BYTES = 32
_BASE62 = string.digits + string.ascii_letters
_RANDOM_CHARS = 43
_CHECK_CHARS = 6
_SECRET = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{_RANDOM_CHARS}}})([0-9A-Za-z]{{{_CHECK_CHARS}}})\Z")
PROJECT = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What the name of a project looks like: it travels in headers and stands in tables."""
_PROJECT = re.compile(PROJECT)
SET_CHARS_MIN = 24
SET_CHARS_MAX = 256
SET_BITS_MIN = 72
"""What a key must have that an operator sets: 24 random hex digits have it."""
_HINT_CHARS = (len(PREFIX) + 2, 4)


class Role(StrEnum):
    """What a key may do: each role may do what the ones before it may."""

    READ = "read"
    """See what its project has."""
    WRITE = "write"
    """Make and change it."""
    ADMIN = "admin"
    """Also make and revoke keys of its project."""
    OPERATOR = "operator"
    """All of that in every project, and see the usage of each."""

    def covers(self, needed: "Role") -> bool:
        """Whether this role is enough where `needed` is asked for."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


class ApiKey(BaseModel):
    """A key as the API shows it, without its secret. Times are Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: Id
    object: Literal["key"] = "key"
    name: Name
    project: Name
    role: Role
    hint: Word
    """The secret's first and last characters: `sk-ab…wxyz`."""
    created_at: Time
    expires_at: Time | None = None
    revoked_at: Time | None = None

    def opens(self, now: float) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def new_key_id() -> str:
    """`key_` and 32 hex digits: 13 of the time, 19 random ones."""
    return f"key_{timely_hex()}"


def new_secret() -> str:
    """A secret that nobody has seen yet."""
    random = _base62(int.from_bytes(secrets.token_bytes(RANDOM_BYTES), "big"), _RANDOM_CHARS)
    return PREFIX + random + _check(random)


def is_secret(text: str) -> bool:
    """Whether the text has the form of a secret, its check included."""
    found = _SECRET.match(text)
    return found is not None and _check(found[1]) == found[2]


def weakness(secret: str) -> str | None:
    """What makes a key that somebody chose easy to guess; None where nothing is seen.

    Its length, and how much its characters differ, are all that can be seen of it: Shannon's entropy of them.
    """
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        return "it may have ASCII letters, digits and signs only, without spaces"
    if not SET_CHARS_MIN <= len(secret) <= SET_CHARS_MAX:
        return f"it has {len(secret)} characters, and needs {SET_CHARS_MIN} to {SET_CHARS_MAX}"
    shares = [count / len(secret) for count in Counter(secret).values()]
    bits = -len(secret) * sum(share * math.log2(share) for share in shares)
    if bits < SET_BITS_MIN:
        return f"its characters are too much alike: some {bits:.0f} bits of {SET_BITS_MIN}"
    return None


def digest(secret: str) -> str:
    """What is kept of a secret: its SHA-256 in hex."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def hint(secret: str) -> str:
    """What may be shown of a secret of `SET_CHARS_MIN` characters or more."""
    head, tail = _HINT_CHARS
    return f"{secret[:head]}…{secret[-tail:]}"


def is_project(text: str) -> bool:
    """Whether the text can name a project; see `PROJECT`."""
    return _PROJECT.fullmatch(text) is not None


def _check(random: str) -> str:
    return _base62(zlib.crc32(random.encode()), _CHECK_CHARS)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_BASE62))
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))
