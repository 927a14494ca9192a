"""Lines are packed into records, and processors can unpack them."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tidemill.ingest.files import packing
from tidemill.ingest.files.packing import Packer, RequestRecord
from tidemill.schemas.jsonl.lines import Line
from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import LineRef, RequestHead

HEAD = RequestHead(
    batch_id="batch_1", project="default", first=0, deadline=1_800_000_000, url="/v1/chat/completions"
)
KEY = "files/file-1"
SIZES = st.sampled_from([1, 2, 300, 4_000, 30_000, 65_535, 65_536, 65_537, 262_144, 262_145, 400_000])


MODELS = ("a", "b", "c")


def packed(lines: list[bytes], packer: Packer | None = None) -> list[RequestRecord]:
    """All records of a batch whose lines follow each other in the file."""
    packer = packer or Packer(HEAD, ["m"])
    offsets = itertools.accumulate((len(line) + 1 for line in lines), initial=0)
    found = [
        Line(number, offset, line) for number, (offset, line) in enumerate(zip(offsets, lines, strict=False), 1)
    ]
    halves = found[: len(found) // 2], found[len(found) // 2 :]
    placed = (packing.placed(first, KEY, half) for first, half in zip((0, len(halves[0])), halves, strict=True))
    return [*itertools.chain(*map(packer.pack, placed)), *packer.finish()]


def unpacked(records: list[RequestRecord], file: bytes) -> list[bytes]:
    """The lines as a processor reads them, each at its index."""
    lines: dict[int, bytes] = {}
    for record in records:
        head = codec.request_head(codec.request_headers(record.head))
        assert head == record.head
        if head.ref is None:
            found = record.value.split(b"\n")
        else:
            assert record.value == b""
            found = [file[head.ref.offset : head.ref.offset + head.ref.length]]
        for index, line in zip(head.places(len(found)), found, strict=True):
            assert index not in lines
            lines[index] = line
    return [lines[index] for index in range(len(lines))]


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.tuples(SIZES, st.integers(0, 2)), min_size=1, max_size=80))
@example(sizes=[(1, place % 3) for place in range(4 * packing.RUN_LINES)])
def test_lines_of_several_models_are_packed_as_if_there_were_no_others(sizes):
    """Each model's records are those of a batch with only its lines, apart from the places of the lines."""
    lines = [bytes([97 + place % 26]) * size for place, (size, _) in enumerate(sizes)]
    numbers = bytes(number for _, number in sizes)
    records = packed(lines, Packer(HEAD, MODELS, numbers))
    assert unpacked(records, b"\n".join(lines)) == lines
    for number, model in enumerate(MODELS):
        mine = [record for record in records if record.model == model]
        alone = packed([line for line, other in zip(lines, numbers, strict=True) if other == number])
        assert [(record.key, record.value) for record in mine] == [(record.key, record.value) for record in alone]
        assert all(numbers[place] == number for record in mine for place in places_of(record))


def places_of(record: RequestRecord) -> Sequence[int]:
    """The places of a record's lines; a record without gaps has no list of them."""
    places = record.head.places(record.value.count(b"\n") + 1)
    assert record.head.indices is None or len(places) < places[-1] - places[0] + 1
    return places


@settings(deadline=None, max_examples=50)
@given(gaps=st.sets(st.integers(0, 700), max_size=60), ends=st.lists(st.integers(1, 700), max_size=6))
def test_a_line_keeps_its_key_in_any_group(gaps, ends):
    """The lines of a stream come in other groups after a crash, and must go to the same partition."""
    placed = [(place, b"{}") for place in range(700) if place not in gaps]

    def keys(edges):
        found = {}
        for first, last in itertools.pairwise(sorted({0, 700, *edges})):
            packer = Packer(HEAD, ["m"])
            group = [one for one in placed if first <= one[0] < last]
            for record in itertools.chain(packer.pack(group), packer.finish()):
                found |= dict.fromkeys(places_of(record), record.key)
        return found

    assert keys(ends) == keys([])


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(SIZES, min_size=1, max_size=80))
def test_unpacked_lines_have_their_places(sizes):
    """Records keep their bounds."""
    lines = [bytes([97 + number % 26]) * size for number, size in enumerate(sizes)]
    records = packed(lines)
    assert unpacked(records, b"\n".join(lines)) == lines
    for record in records:
        held = record.value.split(b"\n")
        assert len(record.value) <= packing.RECORD_BYTES_MAX or len(held) == 1
        assert len(record.value) <= packing.INLINE_BYTES_MAX
        assert len(held) <= packing.RECORD_LINES_MAX


@settings(deadline=None)
@given(total=st.integers(1, 3000))
def test_a_run_stays_together(total):
    """A record never crosses a run; the records of a run have one key; runs and records come in order."""
    run = packing.RUN_LINES
    firsts = []
    for record in packed([b"{}"] * total):
        last = record.head.first + record.value.count(b"\n")
        assert record.head.first // run == last // run
        assert record.key == f"batch_1/{last // run}"
        firsts.append(record.head.first)
    assert firsts == sorted(firsts)


@pytest.mark.parametrize(
    ("total", "records", "runs"),
    [(1, 1, 1), (10, 1, 1), (128, 1, 1), (129, 2, 1), (256, 2, 1), (257, 3, 2), (50_000, 391, 196)],
)
def test_a_record_is_full_before_the_next_begins(total, records, runs):
    """A small batch is one record, and a large one has many keys."""
    found = packed([b"{}"] * total)
    assert (len(found), len({record.key for record in found})) == (records, runs)


def test_a_large_line_is_a_reference():
    """It has a record of its own, in order, which refers to the store."""
    large = b"x" * (packing.INLINE_BYTES_MAX + 1)
    before, reference, after = packed([b"a", large, b"b"])
    assert (before.value, before.head.first) == (b"a", 0)
    assert (reference.value, reference.head.first) == (b"", 1)
    assert reference.head.ref == LineRef(key=KEY, offset=2, length=len(large))
    assert (after.value, after.head.first) == (b"b", 2)


def test_a_batch_is_packed_the_same_each_time():
    """After a crash the same lines have the same records and keys."""
    lines = [b"%d" % number for number in range(777)]
    assert packed(lines) == packed(lines)
