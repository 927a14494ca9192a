"""Throughput and queues: bounded series of batches and projects, exact sums, own projects alone."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dependencies import ADMIN, NOW, ManualClock, batch_of, client_of
from support.trust import VERIFIER

from tidemill.api.view.sqlite import Database
from tidemill.api.view.throughput import POINTS_MAX, STEP_SECONDS, Throughput, appended
from tidemill.api.view.view import View
from tidemill.schemas.log.messages import BatchRecord, Erasure
from tidemill.schemas.resources.batch import Batch, Extras, Progress, RequestCounts, Status, Usage

START = NOW - 7_200
"""Two hours before the present of the clock."""


def batch(number: int, at: int, completed: int, failed: int = 0, **fields: object) -> Batch:
    """A batch at work, as its record said at a time."""
    found = batch_of(
        f"batch_{number:032x}", created_at=START, expires_at=NOW, model="m",
        request_counts=RequestCounts(total=10_000, completed=completed, failed=failed),
        tidemill=Extras(progress=Progress(percent=1.0, lines_per_second=4.0, observed_at=at)),
    )  # fmt: skip
    return found.model_copy(update=fields)


def put(deps, found: Batch, project: str = "p") -> None:
    deps.view.put_batch(BatchRecord(project=project, batch=found))


async def test_a_batch_has_a_bounded_series(deps):
    """Its sum is the batch's counts, whatever the number of records; older and repeated records add nothing."""
    for second in range(2_000):
        put(deps, batch(1, START + second, 3 * second, second // 10))
        put(deps, batch(1, START + second, second))
    ended = batch(1, 0, 9_000, 1_000, status=Status.COMPLETED, finalizing_at=START + 2_100, completed_at=NOW)
    put(deps, ended)
    put(deps, ended)
    async with client_of(deps, "key-of-p") as client:
        shown = (await client.get(f"/batches/{ended.id}/throughput")).json()
        assert len(shown["data"]) <= POINTS_MAX
        assert (sum(one["completed"] for one in shown["data"]), sum(one["failed"] for one in shown["data"])) == (
            9_000, 1_000,
        )  # fmt: skip
        step = shown["interval_seconds"]
        assert step <= 4 * STEP_SECONDS
        assert [one["completed"] for one in shown["data"][1:-2]] == [3 * step] * (len(shown["data"]) - 3)
        small = batch(2, 0, 5, status=Status.COMPLETED, finalizing_at=START + 3, completed_at=START + 4)
        put(deps, small)
        shown = (await client.get(f"/batches/{small.id}/throughput")).json()
        assert [one["completed"] for one in shown["data"]] == [5]
        assert deps.view._database.first("SELECT count(*) FROM series") == 1
        deps.view.delete_batch(ended.id, Erasure(project="p", at=NOW))
    assert deps.view._database.first("SELECT count(*) FROM series") == 0


@given(steps=st.lists(st.integers(-50, 5_000), min_size=1, max_size=600))
def test_a_series_keeps_its_last_counts(steps):
    """In order, with at most `POINTS_MAX` points, by any clock."""
    step, points, at = STEP_SECONDS, [], 1_000_000
    for count, seconds in enumerate(steps, start=1):
        at += seconds
        step, points = appended(step, points, (at, count, 0, 0, None))
        assert len(points) <= POINTS_MAX
        assert points[-1][1] == count
    times = [point[0] for point in points]
    assert times == sorted(set(times))
    assert all(time % step == 0 for time in times)


async def test_a_project_has_its_own_throughput(deps):
    """An operator sees all; tokens count at the end of their batch."""
    usage = Usage(input_tokens=70, output_tokens=7)
    for project, lines in (("p", 100), ("q", 10)):
        put(deps, batch(ord(project), START, 0), project)
        put(deps, batch(ord(project), START + 30, lines), project)
        ended = {"status": Status.COMPLETED, "finalizing_at": START + 600, "completed_at": NOW, "usage": usage}
        put(deps, batch(ord(project), 0, lines + 5, 2, **ended), project)
    async with client_of(deps, "key-of-p") as client, client_of(deps, ADMIN) as operator:
        own = (await client.get("/throughput")).json()
        everything = (await operator.get("/throughput", params={"project": "*"})).json()
        assert (await client.get("/throughput", params={"project": "q"})).status_code == 403
        assert (await client.get("/queues", params={"project": "*"})).status_code == 403
        assert (await client.get("/throughput?window=1h")).json()["data"] == []
    first, second = own["data"]
    assert (first["started"], first["completed"], first["failed"]) == (10_000, 100, 0)
    assert (second["completed"], second["failed"], second["input_tokens"], second["output_tokens"]) == (
        5,
        2,
        70,
        7,
    )
    assert own["projects"] == []
    assert [one["completed"] for one in everything["data"]] == [110, 10]
    assert everything["projects"] == [{"project": "p", "lines": 107}, {"project": "q", "lines": 17}]
    assert own["start"] <= START < own["end"] == NOW


async def test_queues_by_stage_and_model(deps):
    """With the lines that wait, the oldest batch, and the time that the rate needs; ended batches are in none."""
    put(deps, batch(1, NOW, 2_000))
    put(deps, batch(2, NOW - 60, 1_000, created_at=START - 9))
    put(deps, batch(3, NOW, 0, status=Status.VALIDATING, model=None, tidemill=Extras()))
    put(deps, batch(4, NOW, 10_000, status=Status.COMPLETED, finalizing_at=NOW, completed_at=NOW))
    put(deps, batch(5, NOW, 0), "q")
    async with client_of(deps, "key-of-p") as client, client_of(deps, ADMIN) as operator:
        shown = (await client.get("/queues")).json()
        found = {(one["stage"], one["model"]): one for one in shown["data"]}
        everything = (await operator.get("/queues?project=*")).json()["data"]
    assert set(found) == {("ingest", None), ("processors", "m")}
    at_work = found["processors", "m"]
    assert (at_work["batches"], at_work["lines"], at_work["oldest_at"]) == (2, 17_000, START - 9)
    assert (at_work["lines_per_second"], at_work["lag_seconds"]) == (8.0, 17_000 / 8)
    unknown = found["ingest", None]
    assert (unknown["lines_per_second"], unknown["lag_seconds"]) == (None, None)
    assert shown["lines_per_second_out"] == 13_000 / 60
    assert sum(one["batches"] for one in everything) == 4


@pytest.mark.parametrize("second", [0, 1, 30, 59])
async def test_rates_of_queues_are_those_of_the_time_that_there_is(deps, second):
    """Whatever the second of the minute, and also before there are five minutes of lines."""
    at = NOW // 60 * 60 + second
    for minutes in (1, 2, 4, 12):
        for minute in range(minutes + 1):
            deps.view._database.write(
                "INSERT OR REPLACE INTO throughput VALUES ('p', ?, 120, 60, 0, 0, 0)", at - second - 60 * minute
            )
        partly = 60 - second
        deps.view._database.write(
            "UPDATE throughput SET started = ?, completed = ? WHERE at = ?",
            120 - 2 * partly,
            60 - partly,
            at - second,
        )
        deps.view.throughput._clock = lambda: at
        async with client_of(dataclasses.replace(deps, clock=lambda: at), "key-of-p") as client:
            shown = (await client.get("/queues")).json()
        assert (shown["lines_per_second_in"], shown["lines_per_second_out"]) == (2.0, 1.0)


async def test_a_series_has_retries_and_the_limit(deps):
    """Retries of an interval are those of its lines; the limit is what the servers took at its end."""
    limits = iter([4, 8, None, None])
    deps.view.throughput.limit_of = lambda _: next(limits)
    put(deps, batch(1, START, 0))
    for second, retries in ((0, None), (5, 3), (12, 3), (21, 9)):
        found = batch(1, START + second, second + 1)
        found = found.model_copy(update={"tidemill": found.tidemill.model_copy(update={"retries": retries})})
        put(deps, found)
    async with client_of(deps, "key-of-p") as client:
        data = (await client.get(f"/batches/{found.id}/throughput")).json()["data"]
    assert [(one["retried"], one["limit"]) for one in data] == [(0, 4), (3, 8), (0, None), (6, None)]


def test_the_view_forgets_the_series_of_old_batches(tmp_path):
    """Some days after their last line; one that still runs keeps its series. A series has some KB."""
    clock = ManualClock(NOW)
    view = View(Database(tmp_path), clock, VERIFIER)
    for number, status in enumerate((Status.IN_PROGRESS, Status.COMPLETED)):
        for second in range(3):
            view.put_batch(BatchRecord(project="p", batch=batch(number, NOW + second, 9 + second)))
        ended = batch(number, NOW + 3, 12).model_copy(update={"status": status, "completed_at": NOW + 3})
        view.put_batch(BatchRecord(project="p", batch=ended))
    for day, left in ((7, 2), (9, 1)):
        clock.now = NOW + day * 86_400
        view.put_batch(BatchRecord(project="p", batch=batch(day, clock.now, 1)))
        ids = [one for (one,) in view._database.read("SELECT id FROM series ORDER BY id")]
        assert len(ids) == left
    assert ids == [batch(0, NOW, 1).id]
    assert view.throughput.of_batch(ended)[1] == [(NOW - NOW % 5, 12, 0, 0, None)]
    view.close()


def test_the_view_forgets_old_throughput(tmp_path):
    """After some days; a table of a project has a row for each minute."""
    database = Database(tmp_path)
    try:
        now = NOW
        throughput = Throughput(database, lambda: now)
        for day in range(20):
            now = NOW + day * 86_400
            throughput.add("p", None, batch(day, now, 1))
        assert database.first("SELECT count(*) FROM throughput") <= 9
    finally:
        database.close()
