"""The state tables of a partition: active batches and batches that are over, and the expiry of the latter."""

import pytest
from support.largest import largest
from support.simulated import Fuse, SimulatedLog, SimulatedTable, Simulation, surely

from tidemill.results.expiry import LOOK_BATCHES, LOOK_SECONDS, OUTLIVED, StateExpiry
from tidemill.results.files.garbage_collection import GarbageCollection
from tidemill.results.publisher import Publisher
from tidemill.results.state.active_batch import ActiveBatch
from tidemill.results.state.active_batches import ActiveBatches
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.results.state.reducer import State
from tidemill.results.state.tables import GROUP_PARTS, Group, Tables, TornError
from tidemill.schemas.bitmap import CHUNK_LINES
from tidemill.schemas.bounds import RECORD_BYTES_EXTRA, RECORD_BYTES_MAX
from tidemill.schemas.log.part import PartRef
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.storage.directory import DirectoryStore

KEPT_SECONDS = 1000.0
ENDED_AT = 10_000
BATCHES = 300


def state(number, status=Status.IN_PROGRESS, ended_at=ENDED_AT, **fields):
    """A batch in a status."""
    batch = Batch(
        id=f"batch_{number:032x}", endpoint="/v1/embeddings", input_file_id="file-x", completion_window="24h",
        status=status, created_at=1, expires_at=2, completed_at=ended_at if status is Status.COMPLETED else None,
    )  # fmt: skip
    return State(id=batch.id, partition=0, batch=batch, **fields)


KEY = state(0).id.encode() + b"/" + b"0" * 16
"""Rows of the first batch, as an owner sees them before its take-over."""


@pytest.fixture
def rows():
    """The two tables beneath."""
    return SimulatedTable(Fuse()), SimulatedTable(Fuse())


@pytest.fixture
def tables(rows):
    """Of a partition."""
    return Tables(*rows)


def test_a_take_over_reads_the_active_batches(tables):
    """Batches that are over are found by their ids."""
    for number in range(4):
        tables.put_state(state(number))
    tables.put_state(state(2, Status.COMPLETED))
    assert [found.id for found in tables.open()] == [state(number).id for number in (0, 1, 3)]
    assert tables.state(state(2).id).is_over
    assert not tables.state(state(3).id).is_over
    assert tables.state(state(9).id) is None


def test_an_unreadable_batch_is_not_over(tables, rows):
    """Its key and its parts stay for a version that can read it, and no question about it ends the process."""
    tables.put_state(state(0, Status.COMPLETED))
    batches = ActiveBatches(0, tables, float)
    assert (batches.is_over(state(0).id), batches.is_open(state(0).id)) == (True, False)
    (key,) = (key for key, _ in rows[0].scan(b"over/"))
    rows[0].put(key, b"{")
    assert (batches.is_over(state(0).id), batches.is_open(state(0).id)) == (False, True)


def batch_keys(table):
    """The keys of all rows but those of owners."""
    return [key for key, _ in table.scan(b"") if not key.startswith(b"owner/")]


@pytest.mark.parametrize("kept", [1, 2])
def test_the_end_of_a_batch_breaks_off_between_its_two_writes(rows, kept):
    """It is over after the first write, and the next take-over does the second."""
    tables = Tables(*rows)
    tables.put_state(state(0))
    key, open_value = next(rows[0].scan(b"batch_"))
    tables.put_state(state(0, Status.COMPLETED))
    if kept == 1:
        rows[0].put(key, open_value)
    assert tables.state(state(0).id).is_over
    assert not list(tables.open())
    tables.drop_stale()
    assert batch_keys(rows[0]) == [b"over/" + key]


async def test_an_end_that_only_the_local_table_has_reaches_the_changelog(rows):
    """The next take-over writes it before it deletes the active row; afterwards the disk may be lost."""
    tables = Tables(*rows)
    tables.put_state(state(0))
    await tables.delivered()
    rows[0].put(b"over/" + KEY, state(0, Status.COMPLETED).model_dump_json().encode())
    rows[0]._pending.clear()
    successor = Tables(*rows)
    await successor.take_over(1)
    assert not list(successor.open())
    successor.drop_stale()
    await successor.delivered()
    rows[0].local = dict(rows[0].changelog)
    assert Tables(*rows).state(state(0).id).is_over


async def owned(rows, generation):
    """The tables as the owner of a generation of the group takes them over."""
    tables = Tables(*rows)
    await tables.take_over(generation)
    return tables


async def test_a_later_owner_is_never_overwritten(rows):
    """Whatever an earlier owner writes later: the third owner sees the state of the second."""
    zombie, successor = await owned(rows, 1), await owned(rows, 2)
    successor.put_state(state(0, project="right"))
    successor.put_state(state(1, Status.COMPLETED, project="right"))
    zombie.put_state(state(0, Status.COMPLETED, project="wrong"))
    zombie.put_state(state(1, project="wrong"))
    third = await owned(rows, 3)
    assert [found.id for found in third.open()] == [state(0).id]
    for number in range(2):
        assert third.state(state(number).id).project == "right"


async def took_over(rows, generation):
    """The tables of an owner that has adopted all active batches, and their ids."""
    tables = await owned(rows, generation)
    found = list(tables.open())
    await tables.adopt(*(ActiveBatch(state=one, bitmap=LineBitmap.of(tables.chunks(one))) for one in found))
    tables.drop_stale()
    await tables.delivered()
    return tables, [one.id for one in found]


async def test_a_local_table_that_was_not_in_use_revives_no_batch(rows):
    """A later owner ended and forgot the batch, and the broker has compacted away what says so."""
    first, _ = await took_over(rows, 1)
    active = ActiveBatch(state=state(0, parts=parts(2)), bitmap=LineBitmap())
    active.bitmap.mark(1, failed=False)
    await first.keep(active)
    await first.keep(ActiveBatch(state=state(1), bitmap=LineBitmap()))
    left = [dict(table.local) for table in rows]
    second, found = await took_over(rows, 2)
    assert found == [state(0).id, state(1).id]
    second.put_state(state(0, Status.COMPLETED))
    second.forget(state(0, Status.COMPLETED))
    await second.delivered()
    for table, old in zip(rows, left, strict=True):
        table.local = old | table.changelog
    third, found = await took_over(rows, 3)
    assert found == [state(1).id]
    assert third.state(state(0).id) is None
    assert not [key for table in rows for key in table.local if state(0).id.encode() in key]


async def test_an_unfinished_adoption_makes_no_row_obsolete(rows):
    """Neither after a crash, nor while a damaged row waits for a version that can read it."""
    first, _ = await took_over(rows, 1)
    await first.keep(ActiveBatch(state=state(0), bitmap=LineBitmap()))
    crashed = await owned(rows, 2)
    assert [one.id for one in crashed.open()] == [state(0).id]
    key, value = next(rows[0].scan(b"batch_"))
    rows[0].put(key, b"{")
    assert (await took_over(rows, 3))[1] == []
    rows[0].put(key, value)
    assert (await took_over(rows, 4))[1] == [state(0).id]


async def test_a_damaged_row_of_parts_stops_no_other_batch(rows, caplog):
    """The batch is left out like one whose own row is damaged, until a version can read it."""
    first, _ = await took_over(rows, 1)
    for number in (0, 1):
        await first.keep(ActiveBatch(state=state(number, parts=parts(2)), bitmap=LineBitmap()))
    key, value = next(rows[0].scan(b"parts/" + state(0).id.encode()))
    rows[0].put(key, b"[{}]")
    assert (await took_over(rows, 2))[1] == [state(1).id]
    assert f"{state(0).id.encode()!r} in the table is not a batch" in caplog.text
    rows[0].put(key, value)
    third = await owned(rows, 3)
    assert {one.id: one.parts for one in third.open()} == {state(number).id: parts(2) for number in (0, 1)}


async def test_owners_are_in_order_after_a_group_starts_again(rows):
    """A consumer group that was gone for a week begins with generation 1."""
    owners = [(await owned(rows, generation)).owner for generation in (7, 8, 1, 2, 2)]
    assert owners == sorted(set(owners))
    assert [key for key, _ in rows[0].scan(b"owner/")] == [b"owner/%016x" % owners[-1]]


async def test_a_bitmap_is_of_the_owner_of_the_state(rows):
    """It lacks later writes of earlier owners, and is complete after a take-over."""
    zombie = await owned(rows, 1)
    active = ActiveBatch(state=state(0), bitmap=LineBitmap())
    active.bitmap.mark(1, failed=False)
    await zombie.keep(active)
    successor = await owned(rows, 2)
    (found,) = successor.open()
    await successor.adopt(ActiveBatch(state=found, bitmap=LineBitmap.of(successor.chunks(found))))
    active.bitmap.mark(2, failed=False)
    active.bitmap.mark(3 * CHUNK_LINES, failed=False)
    await zombie.keep(active)
    third = await owned(rows, 3)
    (found,) = third.open()
    assert LineBitmap.of(third.chunks(found)).bits == 0b10


async def test_an_unfinished_take_over_has_no_effect(rows):
    """Bitmaps are written before states, so the previous owner's rows still count."""
    first = await owned(rows, 1)
    active = ActiveBatch(state=state(0), bitmap=LineBitmap())
    active.bitmap.mark(1, failed=False)
    await first.keep(active)
    second = await owned(rows, 2)
    list(second.open())
    half = ActiveBatch(state=state(0), bitmap=LineBitmap())
    half.bitmap.mark(9, failed=False)
    second._put_chunks(half, second._touched(half))
    third = await owned(rows, 3)
    (found,) = third.open()
    assert LineBitmap.of(third.chunks(found)).bits == 0b10


async def test_tables_read_at_two_times_are_detected(rows):
    """A bitmap that is ahead of the parts would lose lines."""
    tables = await owned(rows, 1)
    active = ActiveBatch(state=state(0), bitmap=LineBitmap())
    active.bitmap.mark(1, failed=False)
    await tables.keep(active)
    early = dict(rows[0].local)
    part = PartRef(number=0, failed=False, first=2)
    active.state = active.state.model_copy(update={"parts": (part,)})
    active.bitmap.mark(2, failed=False)
    await tables.keep(active)
    rows[0].local = early
    successor = await owned(rows, 2)
    (found,) = successor.open()
    with pytest.raises(TornError):
        list(successor.chunks(found))


def parts(count):
    """So many, as a slow batch writes them."""
    return tuple(PartRef(number=number, failed=False, first=number, crc32=(1, 2)) for number in range(count))


def test_a_batch_with_any_number_of_parts_is_kept_in_records_that_fit(rows):
    """A take-over reads all of them, and the end of the batch leaves only its state."""
    tables, most = Tables(*rows), 3 * GROUP_PARTS + 1
    for count in (0, 1, GROUP_PARTS - 1, GROUP_PARTS, GROUP_PARTS + 1, most):
        tables.put_state(state(0, parts=parts(count)))
        assert Tables(*rows).state(state(0).id).parts == parts(count)
        assert [found.parts for found in Tables(*rows).open()] == [parts(count)]
    # A take-over rewrites all rows that it relies on.
    Tables(*rows).put_state(state(0, parts=parts(most)))
    assert max(len(value) for _, value in rows[0].scan(b"")) < RECORD_BYTES_MAX
    assert Tables(*rows).state(state(0).id).parts == parts(most)
    tables.put_state(state(0, Status.COMPLETED))
    assert [key for key, _ in rows[0].scan(b"")] == [b"over/" + KEY]


def test_only_the_last_records_of_parts_are_written_again(rows, monkeypatch):
    """A flush writes the same amount, however many parts there are."""
    tables = Tables(*rows)
    tables.put_state(state(0, parts=parts(2 * GROUP_PARTS + 5)))
    written = []
    put = rows[0].put
    monkeypatch.setattr(rows[0], "put", lambda key, value: (written.append(key), put(key, value)))
    tables.put_state(state(0, parts=parts(2 * GROUP_PARTS + 6)))
    assert written == [b"parts/" + KEY + b"/00000002", KEY]


def test_parts_of_a_batch_that_is_over_are_dropped(rows):
    """After a crash between the two writes of the end, the next take-over drops them."""
    tables = Tables(*rows)
    tables.put_state(state(0, parts=parts(2)))
    left = list(rows[0].scan(b""))
    tables.put_state(state(0, Status.COMPLETED))
    for key, value in left:
        rows[0].put(key, value)
    successor = Tables(*rows)
    assert not list(successor.open())
    successor.drop_stale()
    assert batch_keys(rows[0]) == [b"over/" + KEY]


@pytest.mark.parametrize(
    ("kind", "without"), [(State, "State.early"), (State, "State.batch"), (Group, "")], ids=str
)
def test_each_record_fits(kind, without):
    """With every other field at its bound; facts that came early are dropped when the batch comes."""
    assert largest(kind, without) + RECORD_BYTES_EXTRA < RECORD_BYTES_MAX


def test_batches_that_are_over_are_read_in_pages(tables):
    """Each comes once."""
    for number in range(5):
        tables.put_state(state(number, Status.COMPLETED))
    first, after = tables.over("", 3)
    second, end = tables.over(after, 3)
    assert [found.id for found in first + second] == [state(n).id for n in range(5)]
    assert not end


async def content():
    yield b"x"


def expiry_of(tables, store, kept_seconds, now):
    """State expiry, without any deletions."""
    publisher = Publisher(SimulatedLog(Fuse()), lambda: 0, output_life_seconds=3600)
    return StateExpiry(tables, GarbageCollection(store, surely), publisher, kept_seconds=kept_seconds, now=now)


async def test_state_expires_with_the_log(tables, rows, tmp_path):
    """First the large results, then state and bitmap; newer and active batches stay."""
    store = DirectoryStore(tmp_path)
    long_ago, lately, at_work = state(0, Status.COMPLETED, chunks=2), state(1, Status.COMPLETED, 12_500), state(2)
    active = ActiveBatch(state=state(0), bitmap=LineBitmap())
    active.bitmap.mark(CHUNK_LINES, failed=False)
    active.bitmap.touch_all()
    await tables.keep(active)
    assert len(rows[1].local) == active.state.chunks == long_ago.chunks
    for one in (long_ago, lately, at_work):
        tables.put_state(one)
        await store.write(f"results-large/{one.id}/1-a", content())
    now = ENDED_AT + OUTLIVED * KEPT_SECONDS + 1
    expiry = expiry_of(tables, store, lambda: KEPT_SECONDS, now - LOOK_SECONDS)
    assert expiry.due_at == now
    assert expiry.look(now - 1) is None
    await expiry.look(now)
    assert [key async for key in store.keys("")] == [f"results-large/{one.id}/1-a" for one in (lately, at_work)]
    assert tables.state(long_ago.id) is not None
    assert expiry.look(now + LOOK_SECONDS) is None
    assert [one.id for one in (long_ago, lately, at_work) if tables.state(one.id)] == [lately.id, at_work.id]
    assert not list(rows[1].scan(b""))


async def test_a_look_is_bounded_and_goes_on_where_the_last_one_ended(tables, tmp_path):
    """At the end it starts again."""
    for number in range(LOOK_BATCHES + 1):
        tables.put_state(state(number, Status.COMPLETED))
    now = 1e6
    expiry = expiry_of(tables, DirectoryStore(tmp_path), lambda: KEPT_SECONDS, now - LOOK_SECONDS)
    left = []
    for turn in range(3):
        if (removal := expiry.look(now + turn * LOOK_SECONDS)) is not None:
            await removal
        left.append(len(tables.over("", 2 * LOOK_BATCHES)[0]))
    assert left == [LOOK_BATCHES + 1, 1, 0]


async def test_a_damaged_row_stops_no_expiry(tables, rows, tmp_path, caplog):
    """It stays; those behind it expire, also beyond the bound of a look."""
    for number in range(2 * LOOK_BATCHES):
        tables.put_state(state(number, Status.COMPLETED))
    damaged = [key for key, _ in rows[0].scan(b"over/")][:LOOK_BATCHES]
    for key in damaged:
        rows[0].put(key, b"{")
    now = 1e6
    expiry = expiry_of(tables, DirectoryStore(tmp_path), lambda: KEPT_SECONDS, now - LOOK_SECONDS)
    for turn in range(4):
        if (removal := expiry.look(now + turn * LOOK_SECONDS)) is not None:
            await removal
    assert [key for key, _ in rows[0].scan(b"over/")] == damaged
    assert "is not a batch" in caplog.text


def test_nothing_expires_while_the_retention_is_unknown(tables, tmp_path):
    """The process learns it some time after its start."""
    tables.put_state(state(0, Status.COMPLETED))
    kept = [float("inf")]
    expiry = expiry_of(tables, DirectoryStore(tmp_path), lambda: kept[0], 0.0)
    assert expiry.due_at is None
    assert expiry.look(1e9) is None
    kept[0] = KEPT_SECONDS
    assert expiry.due_at == LOOK_SECONDS


async def test_a_take_over_waits_for_groups_not_for_batches(monkeypatch):
    """It keeps and publishes hundreds of batches at a time."""
    simulation = Simulation(0)
    for number in range(BATCHES):
        simulation.tables.put_state(state(number))
    waits = []
    delivered = simulation.tables.delivered

    async def counted():
        waits.append(len(simulation.log.published))
        await delivered()

    monkeypatch.setattr(simulation.tables, "delivered", counted)
    partition = simulation.partition()
    await partition.load()
    assert len(waits) <= BATCHES // 50
    published = [record.batch.id for record in simulation.log.published]
    assert sorted(published) == [state(number).id for number in range(BATCHES)]
    partition.abandon()
