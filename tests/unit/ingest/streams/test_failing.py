"""Faults that are not those of a stream's lines: a full disk, and errors of ours."""

import itertools

import pytest
from support.intake import World, check, line, producing

from tidemill import retrying
from tidemill.configuration.settings import Settings
from tidemill.ingest import sqlite
from tidemill.ingest.files.validation import Checker
from tidemill.ingest.sqlite import Digests
from tidemill.ingest.streams import factory
from tidemill.ingest.streams.app import StreamApp
from tidemill.ingest.streams.factory import SeenIds
from tidemill.ingest.streams.publisher import Publisher
from tidemill.ingest.streams.stream import StreamPart
from tidemill.kafka.catalog import Catalog
from tidemill.schemas.log.messages import Sealed, Stalled
from tidemill.schemas.log.signing import Signer
from tidemill.schemas.resources.waiting import Reason
from tidemill.sealing.vault import Vault


def digests(count):
    return [b"%016d" % (number * 7_919 % count) for number in range(count)]


def bounded(found, pages):
    """Let a set have no more pages than these beyond its present ones."""
    execute = found._connection.execute
    execute(f"PRAGMA max_page_count = {execute('PRAGMA page_count').fetchone()[0] + pages}")


@pytest.mark.parametrize("pages", range(8))
def test_a_full_disk_loses_no_digest(pages, tmp_path, monkeypatch):
    """The call fails as the disk does; once there is room, it succeeds, and all digests are in the set."""
    monkeypatch.setattr(sqlite, "ROWS_MAX", 700)
    found, wanted = Digests(tmp_path / "ids"), digests(6_000)
    found.update(wanted[:3_000])
    bounded(found, pages)
    with pytest.raises(OSError, match="full"):
        found.update(wanted[3_000:])
    bounded(found, 1_000)
    found.update(wanted[3_000:])
    assert all(digest in found for digest in wanted)
    assert found._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    found.close()


@pytest.mark.parametrize("pages", range(8))
def test_an_id_that_could_not_be_added_is_new(pages, tmp_path, monkeypatch):
    """Else the second attempt would take its line for a copy of itself, also if the disk is full halfway."""
    monkeypatch.setattr(sqlite, "ROWS_MAX", 100)
    monkeypatch.setattr(factory, "IN_MEMORY_MAX", 1_000)
    seen = SeenIds(tmp_path / "ids")
    assert all(seen.setdefault(f"{number}", 1) for number in range(1_500))
    bounded(seen._many, pages)
    failed = []
    for number in range(1_500, 9_000):
        try:
            assert seen.setdefault(f"{number}", 1)
        except OSError:
            failed.append(number)
            if len(failed) > 2:
                break
    assert len(failed) == 3
    bounded(seen._many, 1_000)
    assert [seen.setdefault(f"{each}", 1) for each in (*failed, 0, *failed)] == [1, 1, 1, 0, 0, 0, 0]
    seen.close()


async def test_lines_wait_for_a_full_disk(tmp_path, monkeypatch):
    """None fails, none is checked twice, and the batch shows why they wait."""
    world, failures = World(0, tmp_path), itertools.count()

    class Full(Digests):
        def update(self, found):
            if next(failures) in (1, 2):
                raise OSError(28, "No space left on device")
            super().update(found)

    monkeypatch.setattr(factory, "Digests", Full)
    monkeypatch.setattr(factory, "IN_MEMORY_MAX", 2)
    world.log = [
        producing(b"a", *(line(f"acme/a/{offset}/{place}") for place in range(3)), ends=offset == 3)
        for offset in range(4)
    ]
    await world.run(0)
    assert next(failures) > 3
    assert not world.codes
    check(world)
    stalls = [fact.waiting for fact in world.facts if isinstance(fact, Stalled)]
    assert [
        [(each.reason, "No space left" in each.message) for each in found] for found in (stalls[0], stalls[-1])
    ] == [
        [(Reason.STORE, True)],
        [],
    ]


async def test_a_kept_line_that_cannot_be_checked_does_not_stop_the_partition(tmp_path, monkeypatch, caplog):
    """The next owner takes its stream over."""
    world = World(0, tmp_path)
    resources = world.resources()
    made = world.factory(resources)
    stream = made.create(("acme", "a"), (0, 0), factory.StreamOptions(), [])

    async def chunks():
        yield line("acme/a/0/0") + b"\n"

    state = stream.state.model_copy(update={"parts": (StreamPart(number=0, writer="w", lines=1, bytes=1),)})
    await world.store.write(state.key(state.parts[0]), chunks())

    def fail(*_):
        raise ValueError

    monkeypatch.setattr(Checker, "fault", fail)
    assert (await made.restore(state)).state is state
    assert "ValueError" in caplog.text


async def test_a_batch_ends_although_a_part_is_lost(tmp_path, monkeypatch, caplog):
    """It shows the reason, and waits for the part until an hour after its deadline."""
    world, calls = World(0, tmp_path), itertools.count()
    monkeypatch.setattr(retrying, "FIRST_SECONDS", 0.0)
    send, join = world.send, world.store.join

    async def pass_time(topic, key, value, *, headers=()):
        sent = await send(topic, key, value, headers=headers)
        if isinstance(world.facts[-1], Stalled):
            world.now += 40_000
        return sent

    async def losing(key, sources):
        call = next(calls)
        if call == 0:
            del world.store.objects[sources[0]]
        elif call == 1:
            raise AssertionError  # an error of ours, after which the assembly begins again
        return await join(key, sources)

    monkeypatch.setattr(world, "send", pass_time)
    monkeypatch.setattr(world.store, "join", losing)
    world.log = [producing(b"a", line(f"acme/a/{offset}/0"), ends=offset == 2) for offset in range(3)]
    await world.run(0)
    (sealed,) = (fact for fact in world.facts if isinstance(fact, Sealed))
    content = world.store.objects[sealed.input.key].splitlines()
    assert (sealed.total, content) == (3, [b"{}"] * 3)
    stalls = [fact for fact in world.facts if isinstance(fact, Stalled)]
    assert [fact.number for fact in stalls] == list(range(4))
    *waits, last = ([(each.reason, each.message, each.since) for each in fact.waiting] for fact in stalls)
    assert [(found[0][0], "is not in the store" in found[0][1]) for found in waits] == [(Reason.FILES, True)] * 3
    assert waits[1] == waits[2], "the wait has begun with its first attempt"
    assert last == []
    assert "3 lines of" in caplog.text


async def test_an_input_is_completed_after_an_error_of_ours(tmp_path, monkeypatch):
    """Else the batch would stay open."""
    world, calls = World(0, tmp_path), itertools.count()
    monkeypatch.setattr(retrying, "FIRST_SECONDS", 0.0)
    join = world.store.join

    async def fail_once(key, sources):
        if not next(calls):
            raise AssertionError
        return await join(key, sources)

    monkeypatch.setattr(world.store, "join", fail_once)
    world.log = [producing(b"a", line("acme/a/0/0"), ends=True)]
    await world.run(0)
    check(world)


@pytest.mark.parametrize(
    "failing", [Publisher._within_quota, Publisher._publish_requests], ids=["check", "publication"]
)
@pytest.mark.parametrize("failures", [{0}, {0, 1}, {0, 2, 3}], ids=str)
async def test_lines_that_are_published_one_by_one_are_checked_once(failing, failures, tmp_path, monkeypatch):
    """After errors of ours in check or publication; a record that fails twice becomes a dead letter."""
    world, calls = World(3, tmp_path), itertools.count()

    def fail(*args):
        if next(calls) in failures:
            raise AssertionError
        return failing(*args)

    monkeypatch.setattr(Publisher, failing.__name__, fail)
    world.log = [producing(b"a", line(f"acme/a/{offset}/0"), ends=offset == 7) for offset in range(8)]
    await world.run(0)
    assert not world.codes
    assert len(world.dead) == (3 in failures)
    if not world.dead:
        check(world)


async def test_a_start_removes_the_ids_that_a_killed_process_left(tmp_path, monkeypatch):
    """Another process may own its streams now, and 1,000,000 ids take 22 MB."""
    left = tmp_path / "state" / "intake" / "ids" / "batch_a"
    monkeypatch.setattr(factory, "IN_MEMORY_MAX", 0)
    SeenIds(left).setdefault("a", 1)
    assert left.exists()
    settings = Settings(kafka="127.0.0.1:9", data=tmp_path, verify_keys=[Signer.made().public])
    StreamApp(
        settings, settings.kafka, catalog=Catalog(None), sender=None, store=None, requests=None, vault=Vault(None)
    )
    assert not left.exists()
