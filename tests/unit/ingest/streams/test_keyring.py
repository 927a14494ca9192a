"""The credentials of direct producers: keys and tokens that the api has signed."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill import metrics
from tidemill.ingest.streams import keyring
from tidemill.ingest.streams.keyring import Keyring
from tidemill.ingest.streams.stream import GROUP_RECORDS_MAX
from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas.log import codec, producer_token
from tidemill.schemas.log.intake import IntakeError
from tidemill.schemas.log.messages import KeyRecord
from tidemill.schemas.log.producer_token import Claims
from tidemill.schemas.log.signing import Signer, Verifier
from tidemill.schemas.resources import access
from tidemill.schemas.resources.access import ApiKey

NOW = 1_800_000_000
SIGNER, STRANGER = Signer.made(), Signer.made()
SECRET = access.new_secret()
SETTINGS = "sk-the-key-of-the-settings-0123"


def record(secret=SECRET, **fields):
    known = {"id": "key_1", "name": "n", "project": "p", "role": "write", "hint": "h", "created_at": NOW}
    return KeyRecord(key=ApiKey(**known | fields), sha256=access.digest(secret))


MADE = SIGNER.key_record(record())
REVOKED = SIGNER.key_record(record(revoked_at=NOW))
HOSTILE = {
    "a tombstone": None,
    "an old record": MADE,
    "an unsigned record": codec.encode(record()),
    "a stranger's record": STRANGER.key_record(record(role="operator")),
    "rubbish": b"\xff\x00",
}


@pytest.fixture
def ring(monkeypatch):
    """A keyring that waits for no key."""
    monkeypatch.setattr(keyring, "HEARD_SECONDS_MAX", 0.0)
    return new()


def new(*, takes_keys=True):
    return Keyring(Verifier([SIGNER.public]), lambda: NOW, fixed=access.digest(SETTINGS), takes_keys=takes_keys)


def token(signer=SIGNER, **claims):
    known = {"sub": "s", "project": "p", "key": "key_1", "iat": NOW, "exp": NOW + 3600}
    return producer_token.token(signer, Claims(**known | claims))


async def refused(ring, secret, stream="s", at=None):
    with pytest.raises(IntakeError) as caught:
        await ring.project(secret, stream, at)
    assert secret not in str(caught.value)
    return str(caught.value)


async def test_a_signed_key_opens_its_project(ring):
    """So does the key of the settings; ingest knows only its digest."""
    ring.fold("key_1", MADE, 0)
    assert await ring.project(SECRET, "s", None) == "p"
    assert await ring.project(SETTINGS, "s", None) == "default"


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "an old record"])
async def test_a_forged_key_opens_nothing(ring, name):
    """A metric counts it."""
    before = metrics.KEYS_REFUSED._value.get()
    ring.fold("key_1", HOSTILE[name], 0)
    assert "not known" in await refused(ring, SECRET)
    assert metrics.KEYS_REFUSED._value.get() == before + 1


@given(
    st.lists(st.sampled_from(sorted(HOSTILE)), max_size=6), st.lists(st.sampled_from(sorted(HOSTILE)), max_size=6)
)
async def test_a_revoked_key_stays_revoked(before, after):
    """Whatever records come before and after: a new process reads all of them."""
    ring = new()
    ring.fold("key_1", MADE, 0)
    for value in (*(HOSTILE[name] for name in before), REVOKED, *(HOSTILE[name] for name in after)):
        ring.fold("key_1", value, 1)
    assert "revoked" in await refused(ring, SECRET)
    assert "revoked" in await refused(ring, token())


async def test_a_reader_may_not_write(ring):
    """A token of its own does not help."""
    ring.fold("key_1", SIGNER.key_record(record(role="read")), 0)
    assert "may only read" in await refused(ring, SECRET)
    assert "may only read" in await refused(ring, token())


async def test_a_token_opens_one_stream_without_a_look_up(ring):
    """Its key may be newer than the keys that this process has read."""
    for _ in range(2):
        assert await ring.project(token(), "s", None) == "p"
    assert "another stream" in await refused(ring, token(), "t")
    assert "no trusted key" in await refused(ring, token(STRANGER))


async def test_a_token_is_judged_at_the_time_of_its_record(ring):
    """A record that the log got in time is accepted, however late it is read."""
    old = token(iat=NOW - 7200, exp=NOW - 3600)
    assert await ring.project(old, "s", NOW - 4000.0) == "p"
    assert "expired" in await refused(ring, old, at=NOW - 3000.0)
    assert "expired" in await refused(ring, old)


async def test_an_expired_token_says_whose_record_it_is(ring):
    """So that the batch can show it; a token for another stream and a revoked key say nothing."""
    for at, stream, project in ((NOW + 9000.0, "s", "p"), (NOW, "t", None)):
        with pytest.raises(IntakeError) as caught:
            await ring.project(token(), stream, at)
        assert caught.value.project == project
    ring.fold("key_1", REVOKED, 0)
    with pytest.raises(IntakeError) as caught:
        await ring.project(token(), "s", NOW)
    assert caught.value.project is None


async def test_a_refused_key_says_what_to_use(ring):
    """In a cluster also the key of the settings is refused; tokens are accepted."""
    del ring
    strict = new(takes_keys=False)
    strict.fold("key_1", MADE, 0)
    for secret in (SECRET, SETTINGS):
        assert "tidemill keys token --stream" in await refused(strict, secret)
    assert await strict.project(token(), "s", None) == "p"


async def test_the_number_of_kept_tokens_is_bounded(monkeypatch):
    """The oldest is dropped, and verified again."""
    monkeypatch.setattr(keyring, "TOKENS_MAX", 3)
    ring = new()
    ring.fold("key_1", MADE, 0)
    tokens = [token(exp=NOW + 100 + number) for number in range(5)]
    for made in itertools.chain(tokens, tokens):
        assert await ring.project(made, "s", None) == "p"
    assert len(ring._claims) == 3


async def test_unknown_keys_are_looked_up_together(ring):
    """One look-up for all records finds a key that was just made."""
    looks = []

    async def abreast():
        looks.append(1)
        ring.fold("key_1", MADE, 0)

    ring.catch_up = abreast
    strangers = [access.new_secret() for _ in range(GROUP_RECORDS_MAX - 1)]
    await ring.learn([*strangers, SECRET])
    assert await ring.project(SECRET, "s", None) == "p"
    for secret in strangers:
        assert "not known" in await refused(ring, secret)
    await ring.learn(strangers)
    assert len(looks) == 1


async def test_a_look_up_in_a_silent_log_is_bounded(ring, monkeypatch):
    """The keys stay unknown; a key that comes later is found."""
    monkeypatch.setattr(keyring, "HEARD_SECONDS_MAX", 0.01)
    ring.catch_up = asyncio.Event().wait
    assert "not known" in await refused(ring, SECRET)

    async def away():
        raise LogUnavailable

    ring.catch_up = away
    assert "not known" in await refused(ring, access.new_secret())
    ring.fold("key_1", MADE, 0)
    assert await ring.project(SECRET, "s", None) == "p"
