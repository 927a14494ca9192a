"""Secrets and roles."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.schemas.resources import access
from tidemill.schemas.resources.access import ApiKey, Role


def key(**fields):
    known = {"id": "key_1", "name": "n", "project": "p", "role": "read", "hint": "sk-ab…wxyz", "created_at": 10}
    return ApiKey(**known | fields)


def test_a_secret_has_a_form_and_a_check():
    """No two are alike; a cut or changed one is invalid."""
    secret = access.new_secret()
    assert access.is_secret(secret)
    assert len(secret) == 3 + 43 + 6
    assert secret != access.new_secret()
    other = "a" if secret[10] != "a" else "b"
    for wrong in (
        secret[:-1],
        f"{secret}a",
        secret[:10] + other + secret[11:],
        f" {secret}",
        f"{secret}\n",
        "sk-",
    ):
        assert not access.is_secret(wrong)


def test_digest_and_hint_of_a_secret():
    """Its hash, and nine of its characters."""
    secret = access.new_secret()
    assert access.digest(secret) == hashlib.sha256(secret.encode()).hexdigest()
    assert access.hint(secret) == f"{secret[:5]}…{secret[-4:]}"


@given(st.text())
def test_any_text_has_a_digest_and_is_no_secret(text):
    """Whatever comes in a header."""
    assert len(access.digest(text)) == 64
    assert not access.is_secret(text)


def test_a_role_covers_those_below_it():
    """Each one itself, too."""
    covered = {role: [needed for needed in Role if role.covers(needed)] for role in Role}
    assert covered == {
        Role.READ: [Role.READ],
        Role.WRITE: [Role.READ, Role.WRITE],
        Role.ADMIN: [Role.READ, Role.WRITE, Role.ADMIN],
        Role.OPERATOR: [Role.READ, Role.WRITE, Role.ADMIN, Role.OPERATOR],
    }


@pytest.mark.parametrize(
    ("secret", "fault"),
    [
        ("sk-choose-one", "13 characters"),
        ("a" * 40, "too much alike"),
        ("abcabcabcabcabcabcabcabcabc", "too much alike"),
        ("x" * 257, "257 characters"),
        ("ä" * 40, "ASCII"),
        ("correct horse battery staple", "without spaces"),
        ("0f3a9c7e5b1d8246f0a97c3e", None),
        ("sk-" + "k3Jf9ZqLx7Bv2Nw8Rt5Ym1Pc", None),
    ],
)
def test_a_chosen_key_must_have_some_strength(secret, fault):
    """Its length and its variety are what can be seen."""
    found = access.weakness(secret)
    assert (found is None) == (fault is None)
    assert fault is None or fault in found
    assert secret not in (found or "")


def test_created_keys_are_strong():
    """Always."""
    assert [access.weakness(access.new_secret()) for _ in range(200)] == [None] * 200


@pytest.mark.parametrize(
    ("fields", "opens"),
    [({}, True), ({"expires_at": 101}, True), ({"expires_at": 100}, False), ({"revoked_at": 99}, False)],
)
def test_a_key_is_valid_until_it_expires(fields, opens):
    """At the second of its expiry it is closed."""
    assert key(**fields).opens(100) is opens


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("a", True),
        ("team-7.x_y", True),
        ("", False),
        ("-a", False),
        ("a" * 65, False),
        ("a\n", False),
        ("ä", False),
    ],
)
def test_names_of_projects(name, is_one):
    """They travel in headers."""
    assert access.is_project(name) is is_one
