"""Which objects the view finds records for, in any order of its topics."""

import pytest
from support.dependencies import NOW, batch_of
from support.trust import VERIFIER

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
