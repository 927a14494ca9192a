"""Signatures of the api: it signs with its private key, and every process verifies with the public key alone.

A signed text is a compact JWS (RFC 7515) with Ed25519 (RFC 8037): `header.payload.signature`, each in base64url.
The verifier trusts no header: it compares it byte by byte with that of each trusted key, so a writer can choose
neither algorithm nor key. The header's `typ` separates the kinds of signed texts.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import KeyRecord

PRIVATE_PREFIX: Final = "tidemill_signing_"
PUBLIC_PREFIX: Final = "tidemill_verify_"
KEY_RECORD: Final = "tidemill-key+jws"
PRODUCER: Final = "tidemill-producer+jwt"
BATCH: Final = "tidemill-batch+jws"
SESSION: Final = "tidemill-session+jwt"
SIGN_IN: Final = "tidemill-sign-in+jwt"
SIGNED_BYTES_MAX: Final = 16 * 1024
"""A longer text is rejected unread; key records and tokens are far shorter."""
VERIFY_KEYS_MAX: Final = 8
_KID_CHARS: Final = 16
_RAW: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_BASE64: Final = re.compile(rb"[A-Za-z0-9_-]+")


class SignatureError(Exception):
    """A text is not signed by a trusted key; the message does not quote it."""


class KeyTextError(ValueError):
    """A text is not a signing or verify key; the message does not quote it."""


@dataclass(frozen=True, kw_only=True)
class Signer:
    """The private key of the api."""

    private: Ed25519PrivateKey

    @classmethod
    def made(cls) -> "Signer":
        """A new key."""
        return cls(private=Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, text: str) -> "Signer":
        """Decode a private key.

        Raises:
            KeyTextError: The text is not a private key.
        """
        raw = _raw(text, PRIVATE_PREFIX, "a signing key", PUBLIC_PREFIX)
        return cls(private=Ed25519PrivateKey.from_private_bytes(raw))

    @property
    def text(self) -> str:
        """The private key as text: a secret."""
        return PRIVATE_PREFIX + _encoded(self.private.private_bytes_raw()).decode()

    @property
    def public(self) -> str:
        """The public key as text, for verifiers."""
        return PUBLIC_PREFIX + _encoded(self.private.public_key().public_bytes_raw()).decode()

    @property
    def kid(self) -> str:
        """The key's id: 16 hex digits of the public key's SHA-256."""
        return _kid(self.private.public_key())

    def sign(self, kind: str, payload: bytes) -> bytes:
        """Sign a payload of a kind."""
        content = b".".join((_header(kind, self.kid), _encoded(payload)))
        return b".".join((content, _encoded(self.private.sign(content))))

    def key_record(self, record: KeyRecord) -> bytes:
        """A signed record of an API key, the value of `tidemill.keys`."""
        return self.sign(KEY_RECORD, codec.encode(record))


class Verifier:
    """The trusted public keys; a text signed with any other key is invalid."""

    def __init__(self, publics: Iterable[str]) -> None:
        """Trust keys in the form of `Signer.public`.

        Raises:
            KeyTextError: One of them is malformed, or there are more than `VERIFY_KEYS_MAX`.
        """
        raws = [_raw(text, PUBLIC_PREFIX, "a verify key", PRIVATE_PREFIX) for text in dict.fromkeys(publics)]
        keys = list(map(Ed25519PublicKey.from_public_bytes, raws))
        if len(keys) > VERIFY_KEYS_MAX:
            raise KeyTextError(f"more than {VERIFY_KEYS_MAX} verify keys")
        self._keys = {_kid(key): key for key in keys}

    @property
    def kids(self) -> tuple[str, ...]:
        """The ids of the trusted keys, sorted."""
        return tuple(sorted(self._keys))

    def payload(self, kind: str, signed: bytes) -> tuple[bytes, str]:
        """The payload of a signed text, and the id of its key.

        Raises:
            SignatureError: It is not of this kind, or no trusted key has signed it.
        """
        if len(signed) > SIGNED_BYTES_MAX:
            raise SignatureError("it is too long")
        content, _, signature = signed.rpartition(b".")
        header, _, payload = content.partition(b".")
        for kid, key in self._keys.items():
            if header == _header(kind, kid):
                try:
                    key.verify(_decoded(signature), content)
                except InvalidSignature:
                    raise SignatureError("its signature is wrong") from None
                return _decoded(payload), kid
        raise SignatureError("no trusted key has signed it")

    def key_record(self, key: str, value: bytes | None) -> tuple[KeyRecord, str]:
        """The API key in a record of `tidemill.keys`, and the id of the key that signed it.

        The record's own key must be the API key's id; a tombstone is invalid, since keys are never deleted.

        Raises:
            SignatureError: The record must be ignored.
        """
        if value is None:
            raise SignatureError("it is a tombstone")
        payload, kid = self.payload(KEY_RECORD, value)
        try:
            record = codec.decode_key(payload)
        except codec.DecodeError as error:
            raise SignatureError("it is of another version") from error
        if record.key.id != key:
            raise SignatureError("it is under another key's id")
        return record, kid


def _header(kind: str, kid: str) -> bytes:
    return _encoded(json.dumps({"alg": "EdDSA", "kid": kid, "typ": kind}, separators=(",", ":")).encode())


def _kid(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:_KID_CHARS]


def _raw(text: str, prefix: str, what: str, other: str) -> bytes:
    if text.startswith(other):
        raise KeyTextError(f"it begins with {other}, and {what} with {prefix}: the two are mixed up")
    body = text.removeprefix(prefix)
    if body == text or _RAW.fullmatch(body) is None:
        raise KeyTextError(f"it is not {what}: {prefix} and 43 characters, as `tidemill keys init` prints it")
    return base64.urlsafe_b64decode(body + "=")


def _encoded(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def _decoded(text: bytes) -> bytes:
    if _BASE64.fullmatch(text) is None or len(text) % 4 == 1:
        raise SignatureError("it is not a signed text")
    content = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    if _encoded(content) != text:
        # Only the canonical form is valid.
        raise SignatureError("it is not a signed text")
    return content
