"""The table of wrapped keys."""

import asyncio
from contextlib import suppress

import pytest
from support.secrets_topic import Topic
from support.waiting import until

from tidemill.configuration.settings import Settings
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import Erasure
from tidemill.sealing import sqlite
from tidemill.sealing.key_manager import KeyManager
from tidemill.sealing.sqlite import Secrets


def test_most_wrapped_keys_are_not_in_memory(monkeypatch):
    """Only those of recently requested batches; all are found, oldest first."""
    monkeypatch.setattr(sqlite, "CACHED_MAX", 10)
    kept = Secrets()
    for number in range(1_000):
        kept.put(f"batch_{number % 500}", f"{number}", b"%d" % number)
    assert all(kept.of(f"batch_{n}") == {f"{n}": b"%d" % n, f"{n + 500}": b"%d" % (n + 500)} for n in range(500))
    assert len(kept._cached) == 10
    assert kept.of("batch_none") == {}
    kept.put("batch_none", "late", b"x")
    assert kept.of("batch_none") == {"late": b"x"}
    assert (kept.drop("batch_0", "0"), kept.drop("batch_0", "0"), kept.of("batch_0")) == (
        True,
        False,
        {"500": b"500"},
    )
    assert [key for *_, key, _ in kept.after(0)] == [*map(str, range(1, 1_000)), "late"]


def bounded(kept, pages):
    """Let the table have no more pages than these beyond its present ones."""
    execute = kept._database.execute
    execute(f"PRAGMA max_page_count = {execute('PRAGMA page_count').fetchone()[0] + pages}")


def test_a_full_disk_loses_no_key():
    """The call fails as the disk does, and can be made again."""
    kept = Secrets()
    bounded(kept, 3)
    stored = 0
    with suppress(OSError):
        for number in range(1_000):
            kept.put(f"batch_{number}", "k", b"x" * 100)
            stored += 1
    with pytest.raises(OSError, match="full"):
        kept.put(f"batch_{stored}", "k", b"x" * 100)
    assert kept.of(f"batch_{stored}") == {}
    bounded(kept, 1_000)
    for number in range(stored, 1_000):
        kept.put(f"batch_{number}", "k", b"x" * 100)
    assert [batch_id for _, batch_id, _, _ in kept.after(0)] == [f"batch_{number}" for number in range(1_000)]
    assert kept._database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_the_destruction_of_keys_goes_on_after_a_fault_of_the_disk(monkeypatch, tmp_path):
    """Its task never ends by itself."""
    looks = []

    class Broken:
        def execute(self, *_):
            looks.append(None)
            raise sqlite.sqlite3.OperationalError("disk I/O error")

    manager = KeyManager(Settings(data=tmp_path), None, None)
    monkeypatch.setattr(manager.vault._secrets, "_database", Broken())
    monkeypatch.setattr("tidemill.retrying.FIRST_SECONDS", 0.0)
    destroying = asyncio.create_task(manager.destroy_due_keys(lambda: 2e9, lambda: 1.0, lambda _: True))
    await until(lambda: len(looks) > 2, "the next attempt")
    destroying.cancel()


async def test_a_deletion_looks_at_no_other_batch(tmp_path):
    """With 200,000 deleted batches, a look at each would stop the event loop for seconds."""
    topic = Topic()
    manager = KeyManager(Settings(data=tmp_path), None, topic)
    erasure = codec.encode(Erasure(project="p", at=1))
    for number in range(5_000):
        manager._apply(f"batch_{number}", erasure, number)
    kept = manager.vault._secrets
    for number in range(3_000):
        manager._apply(f"batch_open{number}/k", b"x", number)
    statements, turns = [], 0
    kept._database.set_trace_callback(statements.append)
    destroying = asyncio.create_task(manager.destroy_due_keys(lambda: 0.0, lambda: 1.0, lambda _: True))
    while len(statements) < 4 and turns < 1_000:
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 4, "others run between the pages of a round"
    assert len(statements) == 4
    statements.clear()
    manager._apply("batch_open7", erasure, 0)
    await until(lambda: topic.records, "the key of the deleted batch")
    assert topic.records == [("batch_open7/k", None)]
    assert len(statements) <= 5
    destroying.cancel()
