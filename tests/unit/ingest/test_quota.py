"""The counts of a project follow the log, and the streams of this process."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.configuration.projects import Limits
from tidemill.ingest.quota import Quotas
from tidemill.ingest.sqlite import Sizes
from tidemill.schemas.log.codec import encode
from tidemill.schemas.log.intake import IntakeError
from tidemill.schemas.log.messages import BatchRecord, FileRecord
from tidemill.schemas.resources.batch import Batch, RequestCounts, Status
from tidemill.schemas.resources.file import OBJECT_BYTES, File

LIMITS = Limits(
    batches_max=4,
    files_max=2,
    batches_in_progress_max=2,
    lines_enqueued_max=10,
    bytes_stored_max=1000 + OBJECT_BYTES,
)


@pytest.fixture
def sizes(tmp_path):
    sizes = Sizes(tmp_path / "sizes")
    yield sizes
    sizes.close()


@pytest.fixture
def quotas(sizes, tmp_path):
    kept = Sizes(tmp_path / "batches")
    yield Quotas(lambda project: LIMITS if project == "p" else Limits(), sizes, kept)
    kept.close()


def batch(status=Status.IN_PROGRESS, total=0, completed=0, failed=0, project="p"):
    """A record of a batch."""
    shown = Batch(
        id="batch_1", endpoint="/v1/embeddings", input_file_id="file-1", completion_window="24h", status=status,
        created_at=1, expires_at=2, metadata={"status": "completed"},
        request_counts=RequestCounts(total=total, completed=completed, failed=failed),
    )  # fmt: skip
    return encode(BatchRecord(project=project, batch=shown))


def file(size, project="p"):
    """A record of a file."""
    shown = File(id="file-1", bytes=size, created_at=1, filename="f", purpose="batch")
    return encode(FileRecord(project=project, file=shown, key="files/file-1", sha256=""))


def test_batches_count_until_they_are_over(quotas):
    """Records may come in any order and more than once."""
    for name in ("a", "b", "b"):
        quotas.batch(name, batch(), 0)
    with pytest.raises(IntakeError, match="has 2 batches in progress and may have 2"):
        quotas.check_batch("p")
    quotas.check_batch("q")
    for name in ("a", "a", "unknown"):
        quotas.batch(name, batch(Status.COMPLETED), 0)
    quotas.check_batch("p")


def test_a_late_record_does_not_reopen_a_batch(quotas):
    """A former owner of its partition may publish progress after the end."""
    for status in (Status.IN_PROGRESS, Status.COMPLETED, Status.IN_PROGRESS):
        quotas.batch("a", batch(status, total=100), 0)
    assert quotas.excess("p") == 0
    quotas.batch("b", batch(), 0)
    quotas.check_batch("p")


def test_batches_of_streams_count_before_the_log_has_them(quotas):
    """Streams of this process count at once."""
    for name in ("a", "b", "c", "d"):
        quotas.count_stream(name, "p", 1, f"file-{name}", 0)
        for status in (Status.IN_PROGRESS, Status.COMPLETED):
            quotas.batch(name, batch(status), 0)
    with pytest.raises(IntakeError, match="has 4 batches and may have 4"):
        quotas.check_batch("p")


def test_the_numbers_of_batches_and_files_are_limited(quotas):
    """At a limit no stream begins; a deletion makes room."""
    for name in ("a", "b", "c", "d", "d"):
        quotas.batch(name, batch(Status.COMPLETED), 0)
    with pytest.raises(IntakeError, match="has 4 batches and may have 4"):
        quotas.check_batch("p")
    quotas.batch("a", None, 0)
    for name in ("file-a", "file-b", "file-b"):
        quotas.file(name, file(1), 0)
    with pytest.raises(IntakeError, match="has 2 files and may have 2"):
        quotas.check_batch("p")
    quotas.file("file-a", None, 0)
    quotas.check_batch("p")


def test_lines_count_until_they_are_final(quotas):
    """The larger of the log's count and the stream's count is used."""
    quotas.count_stream("a", "p", 14, "file-a", 0)
    assert quotas.excess("p") == 4
    assert quotas.refuse("a", "p", 4).code == "lines_enqueued_max"
    assert quotas.excess("p") == 0
    quotas.count_stream("a", "p", 15, "file-a", 0)
    assert quotas.excess("p") == 1
    quotas.batch("a", batch(total=14, completed=3, failed=4), 0)
    assert quotas.excess("p") == 0
    quotas.count_stream("a", "p", 18, "file-a", 0)
    assert quotas.excess("p") == 1
    quotas.batch("a", None, 0)
    assert quotas.excess("p") == 0


def test_bytes_of_a_stream_count_once(quotas):
    """Its input counts before its file exists, and the file after."""
    quotas.count_stream("a", "p", 1, "file-a", 600)
    with pytest.raises(IntakeError, match=f"stores {600 + OBJECT_BYTES:,} bytes and may"):
        quotas.check_bytes("p", 401)
    quotas.file("file-a", file(700), 0)
    quotas.check_bytes("p", 300)
    with pytest.raises(IntakeError, match=f"stores {700 + OBJECT_BYTES:,}"):
        quotas.check_bytes("p", 301)
    quotas.file("file-a", None, 0)
    quotas.check_bytes("p", 1000)


@pytest.mark.parametrize("value", [b"{", b"[]", b'{"v":2,"project":"p","batch":{"status":"asleep"}}'])
def test_invalid_records_count_nothing(quotas, value):
    """Neither do records of a later version."""
    quotas.batch("a", value, 0)
    quotas.file("a", value, 0)
    later = orjson.loads(batch(total=100)) | {"v": 2}
    quotas.batch("a", orjson.dumps(later), 0)
    quotas.check_batch("p")
    assert quotas.excess("p") == 0


files = st.lists(st.tuples(st.integers(0, 5), st.sampled_from("pq"), st.integers(0, 99) | st.none()), max_size=40)


@given(events=files)
def test_sizes_equal_the_sums_of_a_dictionary(tmp_path_factory, events):
    """Objects come, change their size, and go, known or not."""
    sizes, known = Sizes(tmp_path_factory.mktemp("sizes") / "s"), {}
    for number, project, size in events:
        if size is None:
            sizes.drop(str(number))
            known.pop(number, None)
        else:
            sizes.put(str(number), project, size)
            known[number] = project, size
        if number % 2:
            sizes.commit()
    for project in "pq":
        assert sizes.of(project) == sum(size for owner, size in known.values() if owner == project)
    sizes.close()


@pytest.mark.parametrize("run", [1, 40, 3_000])
def test_a_full_disk_changes_no_sums(run, sizes):
    """The caller applies the run of records again."""
    events = [(str(number * 7_919 % 2_000), "pq"[number % 2], number) for number in range(3_000)]
    failures, pages = 0, 2
    for start in range(0, len(events), run):
        is_committed = False
        while not is_committed:
            sizes._connection.execute(f"PRAGMA max_page_count = {pages}")
            before = [(sizes.of(project), sizes.number(project)) for project in "pq"]
            try:
                for event in events[start : start + run]:
                    sizes.put(*event)
                sizes.commit()
                is_committed = True
            except OSError:
                assert before == [(sizes.of(project), sizes.number(project)) for project in "pq"]
                failures += 1
                pages += 1
    known = {key: (project, size) for key, project, size in events}
    for project in "pq":
        mine = [size for owner, size in known.values() if owner == project]
        assert (sizes.of(project), sizes.number(project)) == (sum(mine), len(mine))
    assert failures > 3
