"""Streams under crashes: wherever an owner breaks off, each line has one place in one batch."""

import random

import pytest
from support.intake import PARTITION, World, check, line, producing, records, streams_left

from tidemill import retrying
from tidemill.kafka.partitions import held_records
from tidemill.schemas import ids
from tidemill.schemas.log.messages import Sealed, Stalled
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.waiting import Reason
from tidemill.sealing.vault import Vault
from tidemill.sealing.wrapping import KeyUnavailable

SEEDS = range(150)


@pytest.mark.parametrize("seed", SEEDS)
async def test_crashes_lose_and_double_nothing(seed, tmp_path):
    """Crashes at any await, the disk lost at half of them, keys revoked and batches cancelled in between."""
    world = World(seed, tmp_path)
    world.log = records(world.chance, 60)
    await world.run(world.chance.randint(0, 12))
    check(world)
    assert not [key for key in world.store.objects if key.startswith("intake/")] or world.crashes
    assert not await streams_left(world)


@pytest.mark.parametrize("seed", SEEDS[:40])
async def test_parts_that_cannot_be_read_hold_up_their_stream_alone(seed, tmp_path, monkeypatch):
    """Parts are missing or refused for a while, with crashes."""
    monkeypatch.setattr(retrying, "FIRST_SECONDS", 0.0)
    world = World(seed, tmp_path)
    world.log = records(world.chance, 60)
    whole, trouble, failed = world.store.read, random.Random(seed), []

    async def read(key, start=0, end=None):
        if key.startswith("intake/") and trouble.random() < 0.3:
            failed.append(key)
            raise trouble.choice([NotFound(key), PermissionError(key)])
        async for chunk in whole(key, start, end):
            yield chunk

    monkeypatch.setattr(world.store, "read", read)
    await world.run(world.chance.randint(0, 6))
    check(world)
    assert failed
    assert not await streams_left(world)


class Keys:
    """A wrapper of keys that is out of reach for one project."""

    def __init__(self, project):
        self.project = project

    async def wrap(self, project, place, key):
        del place
        if project == self.project:
            raise KeyUnavailable("no key")
        return "k", key

    async def unwrap(self, project, place, name, wrapped):
        del project, place, name
        return wrapped


DENIED = PermissionError(13, "Permission denied", "/secret/part")


def refusing(world, monkeypatch, refuses, fault=DENIED):
    """Let the store refuse objects, which may still appear there, after others of the same key."""
    write, late = world.store.write, []

    async def refused(key, chunks):
        content = b"".join([chunk async for chunk in chunks])
        if refuses(key):
            late.append((key, content))
            raise fault

        async def again():
            yield content

        size = await write(key, again())
        if late and world.repeating.random() < 0.5:
            key, content = late.pop(0)
            world.store.objects[key] = content
        return size

    monkeypatch.setattr(world.store, "write", refused)


@pytest.mark.parametrize("seed", SEEDS[:60])
async def test_parts_that_the_store_refuses_lose_and_double_nothing(seed, tmp_path, monkeypatch):
    """They are written again with other numbers, since refused ones may appear later; with crashes."""
    monkeypatch.setattr(retrying, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(held_records, "pause_seconds", lambda tries: 15.0 + tries)
    world = World(seed, tmp_path)
    world.log = records(world.chance, 60)
    trouble, refused = random.Random(seed), []
    whole = world.store.read

    async def read(key, start=0, end=None):
        if key.startswith("intake/") and trouble.random() < 0.2:
            raise NotFound(key)
        async for chunk in whole(key, start, end):
            yield chunk

    monkeypatch.setattr(world.store, "read", read)

    def refuses(key):
        refused.append(found := key.startswith("intake/") and trouble.random() < 0.4)
        return found

    refusing(world, monkeypatch, refuses)
    await world.run(world.chance.randint(0, 12))
    check(world)
    assert any(refused)
    assert not await streams_left(world)


class Secrets:
    """The log of keys."""

    async def send(self, topic, key, value, *, headers=()):
        del topic, key, value, headers
        return 0


@pytest.mark.parametrize("what", ["store", "key", "key of a part"])
async def test_a_stream_waits_alone(what, tmp_path, monkeypatch):
    """While its parts are refused or its key is missing, the others of the partition end, and its batch says why.

    A batch that begins under the same name meanwhile is another one.
    """
    world, is_broken = World(0, tmp_path), True
    keys = Keys("acme")
    if what == "key":
        world.vault = Vault(Secrets(), wrapper=keys, seals=True)
    held = ids.stream_batch_id(PARTITION, 0)
    fault = DENIED if what == "store" else KeyUnavailable("no key")
    refusing(world, monkeypatch, lambda key: what != "key" and is_broken and held in key, fault)
    other = [("authorization", b"Bearer else"), ("tidemill-end", b"true")]
    world.log = [
        producing(b"a", line("acme/a/0/0")),
        (b"b", tuple(other), line("else/b/1/0")),
        producing(b"a", line("acme/a/2/0"), ends=True),
        (b"b", tuple(other), line("else/b/3/0")),
        producing(b"a", line("acme/a/4/0"), ends=True),
    ]

    def sealed():
        return {fact.batch_id: fact.total for fact in world.facts if isinstance(fact, Sealed)}

    def mend():
        nonlocal is_broken
        others = {ids.stream_batch_id(PARTITION, offset) for offset in (1, 3)}
        if is_broken and others <= sealed().keys():
            assert held not in sealed()
            is_broken, keys.project = False, None

    world.each_tick = mend
    await world.run(0)
    check(world)
    assert not is_broken
    assert sealed()[held] == 2
    assert len(sealed()) == 4
    waits = [fact.waiting for fact in world.facts if isinstance(fact, Stalled) and fact.batch_id == held]
    assert waits[0][0].reason is (Reason.STORE if what == "store" else Reason.KEY)
    assert not waits[-1]
    assert "/secret" not in str(waits)
