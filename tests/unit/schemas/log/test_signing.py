"""Signatures: what the api has signed is read, and nothing else, whatever comes."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.largest import largest

from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import KeyRecord
from tidemill.schemas.log.signing import (
    KEY_RECORD,
    PRODUCER,
    SIGNED_BYTES_MAX,
    VERIFY_KEYS_MAX,
    KeyTextError,
    SignatureError,
    Signer,
    Verifier,
)
from tidemill.schemas.resources import access
from tidemill.schemas.resources.access import ApiKey, Role

SIGNER, OTHER = Signer.made(), Signer.made()
VERIFIER = Verifier([SIGNER.public])
KEY = ApiKey(id="key_1", name="n", project="p", role="write", hint="sk-ab…wxyz", created_at=10)
RECORD = KeyRecord(key=KEY, sha256=access.digest("sk-1"))
SIGNED = SIGNER.key_record(RECORD)


def b64(content):
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def test_a_signed_text_is_a_jws():
    """As RFC 7515 and RFC 8037 say, so that any library reads it."""
    header, payload, signature = (base64.urlsafe_b64decode(part + b"==") for part in SIGNED.split(b"."))
    assert json.loads(header) == {"alg": "EdDSA", "kid": SIGNER.kid, "typ": KEY_RECORD}
    assert codec.decode_key(payload) == RECORD
    SIGNER.private.public_key().verify(signature, SIGNED.rpartition(b".")[0])


def test_a_verifier_accepts_records_of_trusted_keys():
    """And it names the signing key; both keys are trusted during a replacement."""
    assert VERIFIER.key_record("key_1", SIGNED) == (RECORD, SIGNER.kid)
    both = Verifier([OTHER.public, SIGNER.public])
    assert both.key_record("key_1", SIGNED) == (RECORD, SIGNER.kid)
    with pytest.raises(SignatureError, match="no trusted key"):
        Verifier([OTHER.public]).key_record("key_1", SIGNED)
    with pytest.raises(SignatureError, match="no trusted key"):
        Verifier([]).key_record("key_1", SIGNED)


def forged():
    """Records that a writer without the private key can make."""
    header, payload, signature = SIGNED.split(b".")
    claimed = OTHER.sign(KEY_RECORD, codec.encode(RECORD)).split(b".")
    none = b64(json.dumps({"alg": "none", "typ": KEY_RECORD}).encode())
    hmac = b64(json.dumps({"alg": "HS256", "kid": SIGNER.kid, "typ": KEY_RECORD}).encode())
    admin = b64(codec.encode(RECORD.model_copy(update={"key": KEY.model_copy(update={"role": Role.OPERATOR})})))
    return {
        "tombstone": None,
        "nothing": b"",
        "unsigned": codec.encode(RECORD),
        "of another key": b".".join(claimed),
        "of another key, under the name of this": b".".join((header, *claimed[1:])),
        "without a signature": b".".join((none, payload, b"")),
        "with an algorithm of its own": b".".join((hmac, payload, signature)),
        "raised": b".".join((header, admin, signature)),
        "of another kind": SIGNER.sign(PRODUCER, codec.encode(RECORD)),
        "too long": SIGNED + b"A" * SIGNED_BYTES_MAX,
        "padded": SIGNED + b"=",
        "with a newline": SIGNED + b"\n",
    }


@pytest.mark.parametrize("value", forged().values(), ids=forged())
def test_forged_records_are_rejected(value):
    """Whatever it says about itself."""
    with pytest.raises(SignatureError):
        VERIFIER.key_record("key_1", value)


def test_a_record_under_another_id_is_rejected():
    """One that is copied to another key of Kafka is refused."""
    with pytest.raises(SignatureError, match="another key's id"):
        VERIFIER.key_record("key_2", SIGNED)


@given(st.binary(max_size=300))
def test_any_bytes_are_rejected(value):
    """With no other error."""
    with pytest.raises(SignatureError):
        VERIFIER.key_record("key_1", value)


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_one_changed_byte_invalidates_a_record(place, change):
    """In any of the three parts."""
    value = bytearray(SIGNED)
    value[place] ^= change
    with pytest.raises(SignatureError):
        VERIFIER.key_record("key_1", bytes(value))


@given(st.binary(min_size=1, max_size=200))
def test_any_payload_comes_back(payload):
    """As it was."""
    assert VERIFIER.payload(PRODUCER, SIGNER.sign(PRODUCER, payload)) == (payload, SIGNER.kid)


def test_keys_as_texts():
    """They come back as they were; one in the place of the other is named, and never shown."""
    assert Signer.read(SIGNER.text).public == SIGNER.public
    assert Signer.read(SIGNER.text).kid == SIGNER.kid
    with pytest.raises(KeyTextError, match="mixed up"):
        Signer.read(SIGNER.public)
    with pytest.raises(KeyTextError, match="mixed up") as caught:
        Verifier([SIGNER.text])
    assert SIGNER.text[-20:] not in str(caught.value)
    for text in ("", "x", SIGNER.text[:-1], SIGNER.text + "A", SIGNER.text + "\n"):
        with pytest.raises(KeyTextError):
            Signer.read(text)
    with pytest.raises(KeyTextError, match="more than"):
        Verifier([Signer.made().public for _ in range(VERIFY_KEYS_MAX + 1)])
    assert Verifier([SIGNER.public, SIGNER.public]).kids == (SIGNER.kid,)


def test_the_largest_record_of_a_key_is_read():
    """A name of 255 control characters is six times as long in JSON, and base64 makes it longer."""
    assert len(SIGNER.sign(KEY_RECORD, b"x" * largest(KeyRecord))) <= SIGNED_BYTES_MAX


def test_a_private_key_is_in_no_representation():
    """What ends up in a log."""
    assert SIGNER.text.removeprefix("tidemill_signing_") not in repr(SIGNER) + repr(VERIFIER)
