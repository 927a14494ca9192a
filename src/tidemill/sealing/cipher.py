"""The door to `cryptography`: bytes are sealed with a key and bound to their place.

AES-256-GCM. A nonce is 96 random bits, so one key may seal 2^32 pieces, and two of them have the same nonce with
a chance below 2^-32 (NIST SP 800-38D, 8.3). The largest batch has 10 million lines, so at the most twice as many
records, and each would have to be sealed two hundred times before that is reached. Nothing is counted, so no
restart, redelivery or second process forgets anything.
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
"""What a sealed piece has more than the piece."""


class Damaged(Exception):
    """A sealed piece is cut, changed, of another place, or of another key."""


class Cipher:
    """Seals and opens with one key."""

    __slots__ = ("_aead", "key_id")

    def __init__(self, key: bytes, key_id: str = "") -> None:
        self._aead = AESGCM(key)
        self.key_id = key_id

    def seal(self, data: bytes, place: bytes) -> bytes:
        """The sealed piece: nonce, content, tag.

        Args:
            data: The piece.
            place: Where it belongs; it can be opened there alone.
        """
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, data, place)

    def open(self, sealed: bytes, place: bytes) -> bytes:
        """The piece.

        Raises:
            Damaged: It was not sealed with this key for this place, or not all of it is there.
        """
        if len(sealed) < SEAL_BYTES:
            raise Damaged("it is cut short")
        try:
            return self._aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place)
        except InvalidTag as error:
            raise Damaged("it is changed, or belongs to another place") from error


def new_key() -> bytes:
    """A random key."""
    return os.urandom(KEY_BYTES)


def derived_key(key: bytes, purpose: str) -> bytes:
    """A key of its own for each purpose (HKDF with SHA-256)."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose.encode()).derive(key)
