"""Producers' tokens: one stream, one project, one time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.schemas.bounds import CLOCK_SKEW_SECONDS
from tidemill.schemas.log import intake, producer_token
from tidemill.schemas.log.producer_token import (
    LIFE_SECONDS_MAX,
    TOKEN_CHARS_MAX,
    Claims,
    TokenError,
)
from tidemill.schemas.log.signing import KEY_RECORD, PRODUCER, Signer, Verifier
from tidemill.schemas.resources import access

SIGNER = Signer.made()
VERIFIER = Verifier([SIGNER.public])
CLAIMS = Claims(sub="crawl", project="p", key="key_1", iat=1000, exp=2000)
TOKEN = producer_token.token(SIGNER, CLAIMS)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=intake.NAME_CHARS_MAX).filter(str.isprintable)


@given(NAMES, st.from_regex(access.PROJECT, fullmatch=True), st.integers(0, 1 << 33), st.integers(60, 86_400))
def test_a_token_has_its_claims(name, project, at, life):
    """For every stream and project there can be, and never longer than what a reader takes."""
    claims = Claims(sub=name, project=project, key="key_" + "f" * 32, iat=at, exp=at + life)
    token = producer_token.token(SIGNER, claims)
    assert producer_token.is_token(token)
    assert len(token) <= TOKEN_CHARS_MAX
    found = producer_token.claims(VERIFIER, token)
    assert found == claims
    producer_token.check(found, name, at)
    with pytest.raises(TokenError, match="another stream"):
        producer_token.check(found, name + "x", at)


def test_the_longest_token_fits():
    """A name of the widest characters there are."""
    claims = Claims(
        sub="\U0001f30a" * intake.NAME_CHARS_MAX,
        project="p" * 64,
        key="k" * producer_token.KEY_ID_CHARS_MAX,
        iat=0,
        exp=1,
    )
    token = producer_token.token(SIGNER, claims)
    assert producer_token.claims(VERIFIER, token) == claims


@pytest.mark.parametrize(
    ("at", "fault"),
    [
        (CLAIMS.iat - CLOCK_SKEW_SECONDS - 1, "in the future"),
        (CLAIMS.iat - CLOCK_SKEW_SECONDS, None),
        (CLAIMS.exp, None),
        (CLAIMS.exp + CLOCK_SKEW_SECONDS - 1, None),
        (CLAIMS.exp + CLOCK_SKEW_SECONDS, "expired"),
    ],
)
def test_a_token_is_valid_for_its_time(at, fault):
    """With a tolerance for clocks that differ, and no more."""
    if fault is None:
        producer_token.check(CLAIMS, "crawl", at)
        return
    with pytest.raises(TokenError, match=fault):
        producer_token.check(CLAIMS, "crawl", at)


def test_a_token_with_too_long_a_life_is_invalid():
    """Also where the api has signed it: a bug of the maker opens nothing for good."""
    long = CLAIMS.model_copy(update={"exp": CLAIMS.iat + LIFE_SECONDS_MAX + 1})
    with pytest.raises(TokenError, match="longer than"):
        producer_token.claims(VERIFIER, producer_token.token(SIGNER, long))


@given(st.one_of(st.text(max_size=300), st.from_regex(r"eyJ[\w-]*\.[\w-]*\.[\w-]*", fullmatch=True)))
def test_no_other_text_is_a_token(text):
    """With no other error."""
    with pytest.raises(TokenError):
        producer_token.claims(VERIFIER, text)


@given(st.integers(0, len(TOKEN) - 1), st.characters(codec="ascii"))
def test_a_changed_token_is_invalid(place, character):
    """In any part of it."""
    if TOKEN[place] != character:
        with pytest.raises(TokenError):
            producer_token.claims(VERIFIER, TOKEN[:place] + character + TOKEN[place + 1 :])


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b"[]",
        b"[" * 5000,
        CLAIMS.model_dump_json().replace('"iat":1000', '"iat":"1000"').encode(),
        CLAIMS.model_dump_json().replace('"iat":1000', '"iat":1e400').encode(),
        CLAIMS.model_dump_json().replace('"aud":"tidemill.intake"', '"aud":"other"').encode(),
        CLAIMS.model_dump_json().replace('"sub"', '"admin":true,"sub"').encode(),
        CLAIMS.model_dump_json().replace('"project":"p"', '"project":"../x"').encode(),
    ],
    ids=range(8),
)
def test_claims_are_strict(payload):
    """A signed payload that is not exactly a token's is none."""
    with pytest.raises(TokenError):
        producer_token.claims(VERIFIER, SIGNER.sign(PRODUCER, payload).decode())


def test_another_signed_text_is_not_a_token():
    """Nor is a token that an unknown key signed."""
    payload = CLAIMS.model_dump_json().encode()
    for signed in (SIGNER.sign(KEY_RECORD, payload), Signer.made().sign(PRODUCER, payload)):
        with pytest.raises(TokenError):
            producer_token.claims(VERIFIER, signed.decode())


def test_an_api_key_is_not_taken_for_a_token():
    """By their forms."""
    assert not producer_token.is_token(access.new_secret())
    assert not producer_token.is_token("sk-a.b.c")
