"""Which objects the view finds records for, in any order of its topics."""

from collections import Counter

import pytest
from support.dependencies import NOW, batch_of, open_dependencies
from support.trust import VERIFIER

from tidemill.api.batches.file_removal import ORPHANS_TRACKED_MAX, collect_orphans
from tidemill.api.view.sqlite import Database
from tidemill.api.view.view import View
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord, FileRecord
from tidemill.schemas.resources.batch import Status
from tidemill.schemas.resources.file import File

FILES, BATCHES = topics.FILES.name, topics.BATCHES.name


@pytest.fixture
def view(tmp_path):
    """A new view."""
    view = View(Database(tmp_path), lambda: NOW, VERIFIER)
    yield view
    view.close()


@pytest.mark.parametrize(("project", "kept"), [("p", True), ("q", False)])
@pytest.mark.parametrize("order", [(FILES, BATCHES), (BATCHES, FILES)])
def test_a_new_view_keeps_the_bytes_of_a_deleted_input(view, order, project, kept):
    """The topics are folded in any order; a batch of another project does not count."""
    file = File(id="f", bytes=1, created_at=NOW, filename="f", purpose="batch")
    record = FileRecord(project="p", file=file, key="files/f", sha256="")
    running = BatchRecord(project=project, batch=batch_of("b", status=Status.IN_PROGRESS))
    logs = {
        FILES: [("f", codec.encode(record), 0), ("f", None, 1)],
        BATCHES: [("b", codec.encode(running), 0)],
    }
    for topic in order:
        view.fold(topic, logs[topic])
    assert view.needs_bytes("f") is kept
    assert view.orphans.is_named("files/f") is kept


def test_a_running_batch_keeps_an_input_whose_record_is_compacted_away(view):
    """Kafka may have only the tombstone when a view is made anew."""
    view.fold(FILES, [("f", None, 1)])
    view.put_batch(BatchRecord(project="p", batch=batch_of("b", status=Status.IN_PROGRESS)))
    assert view.orphans.is_named("files/f")
    view.put_batch(BatchRecord(project="p", batch=batch_of("b", status=Status.COMPLETED)))
    assert not view.orphans.is_named("files/f")


async def content():
    """One byte."""
    yield b"x"


async def test_a_search_costs_no_more_for_each_of_many_orphans(tmp_path):
    """Another program may have 100,000 objects in the bucket: neither a count nor a commit for each."""
    async with open_dependencies(tmp_path) as deps:
        for number in range(2 * ORPHANS_TRACKED_MAX):
            await deps.store.write(f"files/{number:04}", content())
        ran: list[str] = []
        connection = deps.view._database._connection
        connection.set_trace_callback(ran.append)
        await collect_orphans(deps)
        connection.set_trace_callback(None)
    counts = Counter(statement.split("(")[0].split(" INTO")[0] for statement in ran)
    assert counts["INSERT OR IGNORE"] == 2 * ORPHANS_TRACKED_MAX
    assert counts["SELECT count"] == counts["COMMIT"] < 10


def test_the_end_of_a_search_reads_the_rows_of_orphans_only(view):
    """A view may have millions of files."""
    ran: list[str] = []
    view.orphans.track(["files/f"])
    view._database._connection.set_trace_callback(ran.append)
    view.orphans.forget_named()
    view._database._connection.set_trace_callback(None)
    (statement,) = (one for one in ran if one.startswith("DELETE"))
    steps = [row[3] for row in view._database.read(f"EXPLAIN QUERY PLAN {statement}")]
    assert [step for step in steps if step.startswith("SCAN")] == ["SCAN orphans"]
