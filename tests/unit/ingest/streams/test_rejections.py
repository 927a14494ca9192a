"""Records that are rejected in mid-stream: their batch shows them, and no other producer can mark it."""

import functools

import pytest
from support.intake import World, check, line
from support.trust import SIGNER, VERIFIER

from tidemill.configuration.projects import Limits
from tidemill.ingest.streams.keyring import Keyring
from tidemill.schemas import ids
from tidemill.schemas.bounds import RECORD_BYTES_MAX
from tidemill.schemas.log import producer_token
from tidemill.schemas.log.dead_letters import PROJECT, UNREAD
from tidemill.schemas.log.messages import DeadLettered, KeyRecord, Opened, Sealed
from tidemill.schemas.log.producer_token import Claims
from tidemill.schemas.log.signing import Signer
from tidemill.schemas.resources.access import ApiKey, Role
from tidemill.schemas.resources.file import OBJECT_BYTES

BATCH = ids.stream_batch_id(3, 0)
STRANGER = Signer.made()
NOW = 1_790_000_000
REVOKED = KeyRecord(
    key=ApiKey(id="key_2", name="n", project="acme", role=Role.WRITE, hint="h", created_at=1, revoked_at=2),
    sha256="0" * 64,
)


def bearer(signer=SIGNER, *, stream="a", project="acme", key="key_1", expired=False):
    """The header with a token of a producer."""
    at = NOW - 90_000 if expired else NOW
    claims = Claims(sub=stream, project=project, key=key, iat=at, exp=at + 80_000)
    return "authorization", f"Bearer {producer_token.token(signer, claims)}".encode()


def record(place, *more, headers=(), value=None, credential=None, ends=False):
    """A record of the stream, with other headers or another value."""
    content = line(f"acme/a/{place}/0") if value is None else value
    end = (("tidemill-end", b"true"),) if ends else ()
    return b"a", (credential or bearer(), *headers, *end, *more), content


async def run(folder, *rejected, together=True, limits=None):
    """A stream whose first and last records are valid, with others between them; a call hands over all, or one."""
    world = World(0, folder)
    world.limits = limits or Limits()
    keyring = Keyring(VERIFIER, lambda: world.now, fixed=None, takes_keys=False)
    keyring.store(REVOKED, "")
    world.project = keyring.project
    world.chance.random = lambda: 1.0  # no cancel
    world.chance.randint = max if together else min
    world.log = [record(0), *rejected, record(len(rejected) + 1, ends=True)]
    await world.run(0)
    return world


def shown(world):
    """The dead letters that batches show: batch and offset."""
    return [
        (fact.batch_id, int(fact.source.rpartition("/")[2]))
        for fact in world.facts
        if isinstance(fact, DeadLettered)
    ]


REJECTED = {
    "an expired token": functools.partial(record, 1, credential=bearer(expired=True)),
    "more than 1 MiB": functools.partial(record, 1, value=line("x") + b" " * RECORD_BYTES_MAX + b"x"),
    "too many short lines": functools.partial(record, 1, value=b"x\n" * 2_000),
    "a malformed number": functools.partial(record, 1, ("tidemill-seq", b"one")),
    "a malformed end": functools.partial(record, 1, ("tidemill-end", b"yes")),
    "a header that is not UTF-8": functools.partial(record, 1, ("tidemill-metadata", b"\xff")),
    "an unknown header": functools.partial(record, 1, ("tidemill-endd", b"true")),
    "a header of our own": functools.partial(record, 1, (UNREAD, b"x")),
}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("why", REJECTED)
async def test_a_rejected_record_is_shown_on_its_batch(why, together, tmp_path):
    """Whatever is wrong with it, also if the same call ends the stream; its letter names the project."""
    world = await run(tmp_path, REJECTED[why](), together=together)
    assert shown(world) == [(BATCH, 1)]
    ((_, headers),) = world.dead
    assert headers[PROJECT] == b"acme"
    assert [(fact.batch_id, fact.total) for fact in world.facts if isinstance(fact, Sealed)] == [(BATCH, 2)]
    check(world)


@pytest.mark.parametrize("together", [False, True])
async def test_a_record_beyond_the_stored_bytes_is_shown_on_its_batch(together, tmp_path):
    """Its letter names the project, too."""
    limits = Limits(bytes_stored_max=len(line("acme/a/0/0")) + 1 + OBJECT_BYTES)
    world = await run(tmp_path, record(1), together=together, limits=limits)
    assert shown(world) == [(BATCH, 1), (BATCH, 2)]
    assert [headers[PROJECT] for _, headers in world.dead] == [b"acme"] * 2


FOREIGN = {
    "no credential": ("authorization", b"x"),
    "a forged token": bearer(STRANGER),
    "a forged and expired token": bearer(STRANGER, expired=True),
    "a token for another stream": bearer(stream="b"),
    "a token of another project": bearer(project="else"),
    "a token of a revoked key": bearer(key=REVOKED.key.id),
    "an expired token of a revoked key": bearer(key=REVOKED.key.id, expired=True),
    "an expired token of another project": bearer(project="else", expired=True),
}


@pytest.mark.parametrize("header", [(), (("tidemill-seq", b"one"),), (("tidemill-metadata", b"\xff"),)])
@pytest.mark.parametrize("who", FOREIGN)
async def test_no_other_producer_marks_a_batch(who, header, tmp_path):
    """A record whose credential does not prove the project and the stream names no batch."""
    world = await run(tmp_path, record(1, ("tidemill-output", b"two"), *header, credential=FOREIGN[who]))
    assert not shown(world)
    ((_, headers),) = world.dead
    assert headers.get(PROJECT) == (b"else" if "of another project" in who else None)
    assert len([fact for fact in world.facts if isinstance(fact, Opened)]) == 1


async def test_a_rejected_record_is_shown_on_no_batch_that_has_ended(tmp_path):
    """It would have begun another one."""
    world = await run(tmp_path, record(1, ends=True), record(2, ("tidemill-output", b"two")))
    assert not shown(world)
    assert len(world.dead) == 1
