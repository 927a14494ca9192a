"""Damaged files of the view, and those that missed tombstones."""

import asyncio

import pytest
from support.dependencies import NOW, ManualClock, batch_of, open_dependencies
from support.trust import VERIFIER
from support.waiting import WAIT_SECONDS_MAX

from tidemill.api.batches.file_removal import mark_current
from tidemill.api.view.batch_tables import AWAY_SECONDS_MAX
from tidemill.api.view.sqlite import Database, StateUnavailable, ViewDamaged
from tidemill.api.view.view import View
from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.follower import Tail
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord

BATCHES = topics.BATCHES.name


RECORD = codec.encode(BatchRecord(project="p", batch=batch_of("b1")))
USES = {
    "poll": lambda view: view.batch("p", "b1"),
    "fold": lambda view: view.fold(BATCHES, [("b1", RECORD, 100)]),
}


def opened(folder) -> tuple[Database, View]:
    """The view of a folder, and its file."""
    database = Database(folder)
    return database, View(database, lambda: NOW, VERIFIER)


def damaged(folder) -> tuple[Database, View]:
    """A view of some batches whose pages are damaged, except the first one and those of empty tables."""
    database, view = opened(folder)
    records = [(f"b{n}", codec.encode(BatchRecord(project="p", batch=batch_of(f"b{n}"))), n) for n in range(100)]
    view.resume(BATCHES, Tail(identity="k/t", end=100))
    view.fold(BATCHES, records)
    (root,) = (row[0] for row in database.read("SELECT rootpage FROM sqlite_schema WHERE name = 'batches'"))
    page = database.first("PRAGMA page_size")
    view.close()
    with database.path.open("r+b") as file:
        file.seek((root - 1) * page)
        file.write(b"\xff" * page)
    return opened(folder)


@pytest.mark.parametrize("use", ["poll", "fold", "query apart"])
async def test_the_first_statement_that_meets_damage_has_the_view_made_anew(tmp_path, use):
    """The start does not look for it. The request gets a 503, the process ends, and the next one folds again."""
    database, view = damaged(tmp_path)
    waiting = asyncio.create_task(database.damaged())
    await asyncio.sleep(0)
    assert not waiting.done()
    with pytest.raises(StateUnavailable, match="SQLITE_CORRUPT"):
        await asyncio.to_thread(view.throughput.queues, None, 9) if use == "query apart" else USES[use](view)
    with pytest.raises(ViewDamaged):
        await asyncio.wait_for(waiting, WAIT_SECONDS_MAX)
    view.close()
    database, view = opened(tmp_path)
    assert view.resume(BATCHES, Tail(identity="k/t", end=101)) == 0
    view.fold(BATCHES, [("b1", RECORD, 100)])
    assert view.batch("p", "b1") is not None
    view.close()


async def test_a_waiter_for_damage_can_be_cancelled(tmp_path):
    """A process that stops meanwhile still deletes the file."""
    database, view = damaged(tmp_path)
    waiting = asyncio.create_task(database.damaged())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    with pytest.raises(ViewDamaged):
        view.batch("p", "b1")
    assert not database.path.exists()
    view.close()


def file_of(folder, clock) -> View:
    """The view of a folder, as a process finds it at its start."""
    return View(Database(folder), clock, VERIFIER)


def test_a_view_that_was_away_for_longer_than_tombstones_live_is_made_anew(tmp_path):
    """Kafka may have dropped the tombstones of files that another process deleted meanwhile."""
    clock, tail = ManualClock(), Tail(identity="k/t", end=9)
    for passed, known in ((0, 0), (AWAY_SECONDS_MAX, 1), (1, 0), (AWAY_SECONDS_MAX, 1)):
        clock.now += passed
        view = file_of(tmp_path, clock)
        assert view.resume(BATCHES, tail) == known
        assert (view.batch("p", "b1") is not None) == bool(known)
        view.fold(BATCHES, [("b1", RECORD, 0)])
        view.close()


def test_a_view_from_the_future_is_made_anew(tmp_path):
    """It was marked by a clock that was ahead, so its age is unknown."""
    clock, tail = ManualClock(), Tail(identity="k/t", end=9)
    view = file_of(tmp_path, clock)
    view.resume(BATCHES, tail)
    view.fold(BATCHES, [("b1", RECORD, 0)])
    view.close()
    clock.now -= 2 * 86_400
    view = file_of(tmp_path, clock)
    assert view.batch("p", "b1") is None
    view.close()


async def test_a_running_process_notes_that_its_view_is_current(tmp_path):
    """But not while it does not read the log, whatever records it has folded."""
    clock = ManualClock()
    async with open_dependencies(tmp_path, clock) as deps:
        clock.now += AWAY_SECONDS_MAX
        await mark_current(deps)
        clock.now += AWAY_SECONDS_MAX
        deps.view.fold(BATCHES, [("b1", RECORD, 0)])
        deps.log.away = True
        with pytest.raises(LogUnavailable):
            await mark_current(deps)
    for passed, known in ((0, True), (1, False)):
        clock.now += passed
        view = file_of(tmp_path / "view", clock)
        assert (view.batch("p", "b1") is not None) is known
        view.close()
