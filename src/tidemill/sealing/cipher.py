"""Authenticated encryption of bytes for one place: AES-256-GCM.

A nonce is 96 random bits, so one key may seal 2^32 pieces with a chance below 2^-32 of an equal nonce (NIST SP
800-38D, 8.3). The largest batch has 10 million lines and at most twice as many records; each would have to be
sealed two hundred times to reach that number. Random nonces need no counter, which a restart, a redelivery or a
second process could repeat.
"""

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
SEAL_BYTES: Final = NONCE_BYTES + TAG_BYTES
"""The additional bytes of a sealed piece."""


class Damaged(Exception):
    """A sealed piece is truncated, changed, or belongs to another place or key."""


class Cipher:
    """Seals and opens with one key."""

    __slots__ = ("_aead", "key_id")

    def __init__(self, key: bytes, key_id: str = "") -> None:
        self._aead = AESGCM(key)
        self.key_id = key_id

    def seal(self, data: bytes | memoryview, place: bytes) -> bytes:
        """The sealed piece: nonce, content, tag; `open` needs the same place."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, data, place)

    def open(self, sealed: bytes | memoryview, place: bytes) -> bytes:
        """The piece.

        Raises:
            Damaged: It was not sealed with this key for this place, or is incomplete.
        """
        if len(sealed) < SEAL_BYTES:
            raise Damaged("it is truncated")
        view = memoryview(sealed)
        try:
            return self._aead.decrypt(view[:NONCE_BYTES], view[NONCE_BYTES:], place)
        except InvalidTag as error:
            raise Damaged("it is changed, or belongs to another place") from error


def new_key() -> bytes:
    """A random key."""
    return os.urandom(KEY_BYTES)


def derived_key(key: bytes, purpose: str) -> bytes:
    """Derive a key for a purpose (HKDF with SHA-256)."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose.encode()).derive(key)
