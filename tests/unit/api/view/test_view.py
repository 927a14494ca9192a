"""The view on a real file, without a log."""

import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.dependencies import ManualClock, batch_of
from support.trust import VERIFIER
from support.waiting import wait_until

from tidemill.api.app import Feed
from tidemill.api.requests.filters import BatchesQuery
from tidemill.api.requests.paging import Page, Row
from tidemill.api.view.sqlite import Database, StateUnavailable
from tidemill.api.view.view import DELETED_SECONDS_MAX, View
from tidemill.kafka.follower import Tail
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord, FileRecord
from tidemill.schemas.resources.batch import Batch, Extras, Progress, Status
from tidemill.schemas.resources.error import ApiError
from tidemill.schemas.resources.file import File
from tidemill.storage import sqlite

FILES, BATCHES = topics.FILES.name, topics.BATCHES.name
NOW = 1_800_000_000


@pytest.fixture
def time():
    """The view's clock."""
    return ManualClock(NOW)


@pytest.fixture
def view(tmp_path, time):
    """A new view."""
    view = View(Database(tmp_path), time, VERIFIER)
    yield view
    view.close()


def batches(view: View, project: str, wanted: BatchesQuery) -> list[Row]:
    """The rows of a list."""
    return view.batches(project, wanted)[0]


def query(limit: int, **fields: object) -> BatchesQuery:
    """The query of a list of batches, as a request has it."""
    return BatchesQuery(limit=str(limit), **fields)


def file_record(file_id: str, *, created_at: int = NOW, purpose: str = "batch", **fields: object) -> FileRecord:
    """A file of the project `p`."""
    file = File(id=file_id, bytes=1, created_at=created_at, filename="f", purpose=purpose, **fields)
    return FileRecord(project="p", file=file, key=f"files/{file_id}", sha256="0" * 64)


def batch(batch_id: str = "b", status: Status = Status.VALIDATING, created_at: int = NOW) -> Batch:
    """A batch of the file `f`."""
    return batch_of(batch_id, status=status, created_at=created_at, expires_at=created_at + 86_400)


def ids(rows) -> list[str]:
    """The ids of a list."""
    return [row.id for row in rows]


def test_an_older_record_does_not_undo_an_own_delete(view):
    """The view may read the upload's record after this process wrote the tombstone."""
    view.put_file(file_record("f"), 10)
    view.drop_file("f", 11)
    view.fold(FILES, [("f", codec.encode(file_record("f")), 10)])
    assert view.file("p", "f") is None
    view.fold(FILES, [("f", None, 11)])
    assert view.file("p", "f") is None
    view.fold(FILES, [("f", codec.encode(file_record("f")), 12)])
    assert view.file("p", "f") == file_record("f")


@pytest.mark.parametrize("offset", [-1, 11])
def test_a_delete_is_visible_at_once(view, offset):
    """Whether or not the broker returned its offset."""
    view.fold(FILES, [("f", codec.encode(file_record("f")), 10)])
    view.drop_file("f", offset)
    assert view.file("p", "f") is None


def test_an_expired_file_is_hidden(view, time):
    """Alone and in lists."""
    view.put_file(file_record("f", expires_at=NOW + 10), 0)
    assert view.file("p", "f") is not None
    time.now += 10
    assert view.file("p", "f") is None
    assert view.files("p", Page(limit=10), None) == []
    assert view.expired(9) == [("f", "files/f")]
    view.drop_file("f", 1)
    assert view.expired(9) == []


def test_lists_of_files(view, time):
    """By time, then id; by purpose; from a deleted cursor, until it is purged."""
    for number, (file_id, created_at) in enumerate([("a", 1), ("c", 2), ("b", 2), ("d", 3)]):
        view.put_file(file_record(file_id, created_at=created_at, purpose="batch" if number else "evals"), number)
    assert ids(view.files("p", Page(limit=9), None)) == ["d", "c", "b", "a"]
    assert ids(view.files("p", Page(limit=9, newest_first=False), None)) == ["a", "b", "c", "d"]
    assert ids(view.files("p", Page(limit=9), "evals")) == ["a"]
    assert ids(view.files("p", Page(limit=1, after="c"), None)) == ["b", "a"]
    view.drop_file("c", 9)
    assert ids(view.files("p", Page(limit=9, after="c"), None)) == ["b", "a"]
    time.now += DELETED_SECONDS_MAX + 1
    view.fold(FILES, [("x", None, 10)])
    with pytest.raises(ApiError):
        view.files("p", Page(limit=9, after="c"), None)


def test_the_view_is_scoped_by_project(view):
    """Files, batches, lists and cursors."""
    view.put_file(file_record("f"), 0)
    view.put_batch(BatchRecord(project="p", batch=batch()))
    assert view.file("q", "f") is None
    assert view.batch("q", "b") is None
    assert view.files("q", Page(limit=9), None) == []
    assert batches(view, "q", query(9)) == []
    with pytest.raises(ApiError):
        batches(view, "q", query(9, after="b"))


def test_the_bytes_of_a_deleted_input_stay_until_its_batch_ends(view):
    """Then they are released once."""
    view.put_file(file_record("f"), 0)
    view.put_file(file_record("g"), 1)
    view.put_batch(BatchRecord(project="p", batch=batch()))
    view.drop_file("f", 2)
    view.drop_file("g", 3)
    assert (view.is_held("f"), view.is_held("g")) == (True, False)
    assert view.releasable(9) == []
    view.fold(BATCHES, [("b", codec.encode(BatchRecord(project="p", batch=batch("b", Status.FAILED))), 0)])
    assert view.releasable(9) == [("f", "files/f")]
    view.hold("f", holds=False)
    assert view.releasable(9) == []


def test_a_tombstone_deletes_a_batch(view):
    """From the view."""
    view.fold(BATCHES, [("b", codec.encode(BatchRecord(project="p", batch=batch())), 0)])
    assert view.batch("p", "b") is not None
    view.fold(BATCHES, [("b", None, 1)])
    assert view.batch("p", "b") is None


def test_a_poll_shows_each_change(view):
    """Though the view keeps what it has read: new states, reruns, deletions, and another cluster."""

    def polled():
        return None if (body := view.batch("p", "b")) is None else Batch.model_validate_json(body)

    def fold(offset, found):
        view.fold(BATCHES, [(found.id, codec.encode(BatchRecord(project="p", batch=found)), offset)])

    fold(0, batch())
    assert polled().status is polled().status is Status.VALIDATING
    fold(1, batch(status=Status.IN_PROGRESS))
    assert polled().status is Status.IN_PROGRESS
    assert view.batch("q", "b") is None
    fold(2, batch("r").model_copy(update={"tidemill": Extras(rerun_of="b")}))
    assert polled().tidemill.reruns == ("r",)
    view.fold(BATCHES, [("b", None, 3)])
    assert polled() is None
    fold(4, batch())
    assert polled() is not None
    view.resume(BATCHES, Tail(identity="another/t", end=0))
    assert polled() is None


def test_a_poll_shows_nothing_that_was_not_stored(tmp_path, time):
    """A fold that fails on a full disk has read its own writes."""
    database = Database(tmp_path)
    view = View(database, time, VERIFIER)
    view.fold(BATCHES, [("b", codec.encode(BatchRecord(project="p", batch=batch())), 0)])
    fill(database)
    large = batch(status=Status.FINALIZING).model_copy(update={"metadata": {str(n): "v" * 500 for n in range(16)}})
    changes = (batch(status=Status.IN_PROGRESS), *(large,) * 9)
    with pytest.raises(StateUnavailable):
        view.fold(BATCHES, [("b", codec.encode(BatchRecord(project="p", batch=one)), 1) for one in changes])
    assert Batch.model_validate_json(view.batch("p", "b")).status is Status.VALIDATING
    view.close()


def test_an_unreadable_record_is_skipped(view, caplog):
    """The log quotes none of its text."""
    view.fold(FILES, [("x", b'{"needle":1}', 0), ("f", codec.encode(file_record("f")), 1)])
    assert view.file("p", "f") is not None
    assert view.resume(FILES, Tail(identity="k/t", end=2)) == 2
    assert "needle" not in caplog.text


def test_offsets_are_stored_with_the_rows(tmp_path, time):
    """A new process continues; another topic of this name, or a shorter one, is folded from its beginning."""
    feed = Feed(view := View(Database(tmp_path), time, VERIFIER), FILES)
    assert feed.resume(Tail(identity="k/t", end=5)) == 0
    for offset in range(5):
        feed.apply(f"f{offset}", codec.encode(file_record(f"f{offset}")), offset)
    feed.applied()
    assert view.resume(BATCHES, Tail(identity="k/t", end=5)) == 0
    view.put_batch(BatchRecord(project="p", batch=batch()))
    view.close()
    view = View(Database(tmp_path), time, VERIFIER)
    assert view.resume(BATCHES, Tail(identity="k/t", end=5)) == 0
    assert view.resume(FILES, Tail(identity="k/t", end=9)) == 5
    assert view.resume(FILES, Tail(identity="k/t", end=4)) == 0
    assert view.file("p", "f0") is None
    assert view.batch("p", "b") is not None
    assert view.resume(BATCHES, Tail(identity="k/other", end=5)) == 0
    assert view.batch("p", "b") is None
    view.close()


def test_each_process_has_its_own_file(tmp_path):
    """The next process takes the next one; a released one is taken again."""
    first, second = Database(tmp_path / "api"), Database(tmp_path / "api")
    assert [first.path.parent.name, second.path.parent.name] == ["api", "api-1"]
    first.close()
    third = Database(tmp_path / "api")
    assert third.path == first.path
    second.close()
    third.close()


def test_a_failed_transaction_leaves_no_write(tmp_path):
    """All or nothing."""
    database = Database(tmp_path)
    database.write("INSERT INTO topics VALUES ('t', 1, 'k/t')")

    def write_twice() -> None:
        with database.transaction():
            database.write("INSERT INTO current VALUES (1)")
            database.write("INSERT INTO topics VALUES ('t', 2, 'k/t')")

    with pytest.raises(sqlite3.IntegrityError):
        write_twice()
    assert database.read("SELECT * FROM current") == []
    database.close()


def fill(database):
    """Limit the file to its size, like a full disk."""
    pages = database.read("PRAGMA page_count")[0][0]
    database.read(f"PRAGMA max_page_count = {pages}")


def test_no_write_waits_for_a_checkpoint(tmp_path, monkeypatch):
    """A thread makes them, since they wait for the disk. The log starts again even while writes go on."""

    def write(count):
        for _ in range(count):
            database.write("INSERT INTO trust VALUES (hex(randomblob(8)))")

    monkeypatch.setattr(sqlite, "CHECKPOINT_SECONDS", 3600.0)
    database = Database(tmp_path)
    size = database.path.stat().st_size
    write(4_000)
    assert database.path.stat().st_size == size
    database.close()
    written, size = size, database.path.stat().st_size
    assert size > written
    monkeypatch.setattr(sqlite, "CHECKPOINT_SECONDS", 0.01)
    database = Database(tmp_path)
    write(4_000)
    wait_until(lambda: database.path.stat().st_size > size, "a checkpoint")
    started = (log := tmp_path / f"{database.path.name}-wal").read_bytes()[12:16]
    wait_until(lambda: write(100) or log.read_bytes()[12:16] != started, "a new log")
    database.close()


def test_a_full_disk_leaves_the_view_unchanged(tmp_path):
    """The error is `StateUnavailable`, and writes work again once there is space."""
    database = Database(tmp_path)
    fill(database)

    def write_much() -> None:
        with database.transaction():
            database.write("INSERT INTO current VALUES (1)")
            database.write("INSERT INTO topics VALUES (?, 1, 'k/t')", "t" * 100_000)

    for _ in range(2):
        with pytest.raises(StateUnavailable, match="SQLITE_FULL"):
            write_much()
    assert database.read("SELECT * FROM current") == []
    database.read("PRAGMA max_page_count = 1000000")
    write_much()
    assert database.read("SELECT * FROM current") == [(1,)]
    database.close()


def test_a_full_disk_does_not_rebuild_the_view(tmp_path):
    """A later start continues with the same file."""
    database = Database(tmp_path)
    database.write("INSERT INTO current VALUES (1)")
    database.close()
    journal = database.path.with_name(f"{database.path.name}-wal")
    journal.mkdir()
    with pytest.raises(OSError, match="cannot be opened"):
        Database(tmp_path)
    journal.rmdir()
    database = Database(tmp_path)
    assert database.read("SELECT * FROM current") == [(1,)]
    database.close()


def test_an_ended_batch_is_shown_with_its_files(view):
    """Its last record waits for the records of its files, which are on another topic."""
    running = BatchRecord(project="p", batch=batch(status=Status.FINALIZING))
    over = BatchRecord(project="p", batch=batch(status=Status.COMPLETED), files_offset=1)
    view.fold(BATCHES, [("b", codec.encode(running), 0), ("b", codec.encode(over), 1)])
    assert Batch.model_validate_json(view.batch("p", "b")).status is Status.FINALIZING
    view.fold(FILES, [("f0", codec.encode(file_record("f0")), 0)])
    assert Batch.model_validate_json(view.batch("p", "b")).status is Status.FINALIZING
    view.fold(FILES, [("f1", codec.encode(file_record("f1")), 1)])
    assert Batch.model_validate_json(view.batch("p", "b")).status is Status.COMPLETED
    view.fold(BATCHES, [("b", codec.encode(over), 2)])
    assert Batch.model_validate_json(view.batch("p", "b")).status is Status.COMPLETED


LABELS = st.dictionaries(st.sampled_from(["env", "run"]), st.sampled_from("abc"), max_size=2)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    put=st.lists(st.tuples(st.sampled_from("pq"), st.integers(0, 3), LABELS), max_size=12),
    labels=LABELS,
    after=st.integers(0, 3) | st.none(),
    turn=st.tuples(st.integers(1, 4), st.sampled_from(["asc", "desc"])),
)
def test_lists_by_metadata(view, put, labels, after, turn):
    """They equal a scan of all batches of the project."""
    for row in ids(batches(view, "p", query(100))) + ids(batches(view, "q", query(100))):
        view._drop_batch(row)
    for number, (project, at, metadata) in enumerate(put):
        made = batch(f"b{number}", created_at=NOW + at).model_copy(update={"metadata": metadata})
        view.put_batch(BatchRecord(project=project, batch=made))
    wanted = {"metadata": labels} | ({} if after is None else {"created_after": str(NOW + after)})
    listed, last, more, (limit, order) = [], None, True, turn
    while more:
        found = ids(batches(view, "p", query(limit, order=order, after=last, **wanted)))
        listed, more = listed + found[:limit], len(found) > limit
        last = listed[-1] if listed else None
    expected = [
        (NOW + at, f"b{number}")
        for number, (project, at, metadata) in enumerate(put)
        if project == "p" and labels.items() <= metadata.items() and (after is None or at > after)
    ]
    assert listed == [row for _, row in sorted(expected, reverse=order == "desc")]


def test_a_rare_label_is_found_without_a_scan(view):
    """Neither of the project's batches, nor of others with the label: lists run on the event loop."""
    steps = 0

    def count():
        nonlocal steps
        steps += 1

    for number in range(600):
        metadata = {"env": "a", "run": str(number)}
        made = batch(f"b{number}", created_at=NOW + number).model_copy(update={"metadata": metadata})
        view.put_batch(BatchRecord(project="q" if number else "p", batch=made))
    view._database._connection.set_progress_handler(count, 10)
    assert ids(batches(view, "p", query(20, metadata={"env": "a"}))) == ["b0"]
    assert ids(batches(view, "q", query(20, metadata={"run": "7"}))) == ["b7"]
    assert not ids(batches(view, "q", query(20, metadata={"run": "x"})))
    assert steps < 60


def test_outdated_progress_is_hidden(view, time):
    """If results has stopped, neither a batch nor a list shows an old rate or an end in the past."""
    progress = Progress(
        percent=50.0, lines_per_second=10.0, done_earliest_at=NOW + 300, done_latest_at=NOW + 900,
        slack_seconds=600, observed_at=NOW, holds_until=NOW + 70,
    )  # fmt: skip
    at_work = batch("b", Status.IN_PROGRESS).model_copy(
        update={"metadata": {"progress": '{"percent":1}'}, "tidemill": Extras(progress=progress)}
    )
    view.put_batch(BatchRecord(project="p", batch=at_work))

    def seen():
        (row,) = batches(view, "p", query(10))
        one = view.batch("p", "b")
        assert row.body == one
        return Batch.model_validate_json(one)

    assert seen() == at_work
    time.now = NOW + 600
    shown = seen()
    assert shown.metadata == at_work.metadata
    assert shown.tidemill.progress == Progress(
        percent=50.0, slack_seconds=0, observed_at=NOW, holds_until=NOW + 70
    )
