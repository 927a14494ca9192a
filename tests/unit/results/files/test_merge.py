"""The merge writes each line once and in order, whatever the parts hold."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.results.files import merge
from tidemill.results.files.compaction import write_part
from tidemill.results.files.merge import Sums, merged, read_index
from tidemill.results.state.active_batch import PartBuffer
from tidemill.schemas.bounds import TOKENS_MAX
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.log.part import UNKNOWN_USAGE, PartError, PartRef, part_key
from tidemill.schemas.ports import NotFound
from tidemill.storage.directory import DirectoryStore

BATCH = "batch_b"

parts_of_lines = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=30), max_size=6)


def text(index):
    return b"line %d %s\n" % (index, b"x" * (index % 7))


async def pieces(data):
    for piece in data:
        yield piece


async def stored(store, parts):
    refs = []
    for number, indices in enumerate(parts):
        buffer = PartBuffer()
        for index in dict.fromkeys(indices):
            line = text(index)
            buffer.add([LineMark(index=index, size=len(line), failed=False, usage=(1, 0, 2, 0))], line)
        ref = await write_part(store, BATCH, number, buffer, failed=False)
        assert ref.first == min(indices)
        refs.append((ref, part_key(BATCH, ref)))
    return refs


@settings(max_examples=60, deadline=None)
@given(parts=parts_of_lines)
async def test_the_merge_has_each_line_once_and_in_order(tmp_path_factory, parts):
    """Parts may overlap, as after a crash."""
    store = DirectoryStore(tmp_path_factory.mktemp("store"))
    sums = Sums()
    got = b"".join([bytes(piece) async for piece in merged(store, await stored(store, parts), sums)])
    expected = sorted({index for part in parts for index in part})
    assert got == b"".join(map(text, expected))
    assert sums.lines.done == len(expected)
    assert sums.usage == (len(expected), 0, 2 * len(expected), 0)
    assert list(sums.indices) == expected
    assert list(sums.sizes) == [len(text(index)) for index in expected]


async def test_unknown_usage_is_counted_but_not_summed(tmp_path):
    """It has its place in the columns."""
    store, buffer, sums = DirectoryStore(tmp_path), PartBuffer(), Sums()
    most = (TOKENS_MAX,) * 4
    for index, usage in enumerate([most, None, (1, 0, 2, 0), None]):
        buffer.add([LineMark(index=index, size=len(text(index)), failed=False, usage=usage)], text(index))
    part = await write_part(store, BATCH, 0, buffer, failed=False)
    async for _ in merged(store, [(part, part_key(BATCH, part))], sums):
        pass
    assert sums.unknown == 2
    assert sums.usage == (TOKENS_MAX + 1, TOKENS_MAX, TOKENS_MAX + 2, TOKENS_MAX)


def test_the_sums_of_each_model():
    """Also of one without a line; they add up to those of the file."""
    sums, unknown = Sums(), UNKNOWN_USAGE
    for model, usage in ((2, (1, 2, 3, 4)), (0, unknown), (2, (10, 20, 30, 40)), (0, (5, 0, 6, 0)), (2, unknown)):
        sums.models.append(model)
        sums.usages.extend(usage)
    assert sums.by_model(4) == [(2, (5, 0, 6, 0)), (0, (0,) * 4), (3, (11, 22, 33, 44)), (0, (0,) * 4)]
    assert sums.usage == (16, 22, 39, 44)


async def test_chunks_may_end_within_lines(tmp_path, monkeypatch):
    """The store's chunks do not follow the lines of a part."""
    monkeypatch.setattr("tidemill.storage.directory.READ_BYTES", 7)
    store = DirectoryStore(tmp_path)
    refs = await stored(store, [list(range(0, 40, 2)), list(range(1, 40, 2))])
    got = b"".join([bytes(piece) async for piece in merged(store, refs, Sums())])
    assert got == b"".join(map(text, range(40)))


async def test_a_missing_part_is_an_error(tmp_path):
    """The merge never skips a part."""
    refs = [(PartRef(number=0, failed=False, first=0), "parts/0")]
    with pytest.raises(NotFound):
        [piece async for piece in merged(DirectoryStore(tmp_path), refs, Sums())]


@pytest.mark.parametrize("content", [b"", b"TM", b"nothing of the kind", b"TMP1\x02\x00\x00\x00abc"])
async def test_an_object_that_is_no_part_is_an_error(tmp_path, content):
    """Truncated and foreign objects."""
    store = DirectoryStore(tmp_path)
    await store.write("parts/0", pieces([content]))
    refs = [(PartRef(number=0, failed=False, first=0), "parts/0")]
    with pytest.raises(PartError):
        [piece async for piece in merged(store, refs, Sums())]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
async def test_a_damaged_part_is_an_error(tmp_path_factory, data):
    """Any flipped bit in columns or lines, also in a duplicate line."""
    store = DirectoryStore(tmp_path_factory.mktemp("store"))
    refs = await stored(store, [[0, 2, 4], [1, 2, 3]])
    _, key = data.draw(st.sampled_from(refs))
    content = bytearray(b"".join([chunk async for chunk in store.read(key)]))
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    await store.write(key, pieces([bytes(content)]))
    with pytest.raises(PartError):
        [piece async for piece in merged(store, refs, Sums())]


async def test_damaged_columns_are_an_error(tmp_path):
    """Also if only the columns are read."""
    store = DirectoryStore(tmp_path)
    ((part, key),) = await stored(store, [[0, 1]])
    assert list((await read_index(store, part, key)).indices) == [0, 1]
    content = b"".join([chunk async for chunk in store.read(key)])
    await store.write(key, pieces([content.replace(b"TMP1\x02\x00\x00\x00\x00", b"TMP1\x02\x00\x00\x00\x07")]))
    with pytest.raises(PartError, match="is not what was written"):
        await read_index(store, part, key)


async def test_parts_without_checksums_are_merged(tmp_path):
    """States of older versions name such parts."""
    store = DirectoryStore(tmp_path)
    refs = [(part.model_copy(update={"crc32": None}), key) for part, key in await stored(store, [[0, 1]])]
    assert b"".join([bytes(piece) async for piece in merged(store, refs, Sums())]) == text(0) + text(1)


class Counting:
    """A store that counts the streams that are open."""

    def __init__(self, store):
        self._store = store
        self.open = self.most = self.reads = 0

    async def read(self, key, start=0, end=None):
        """See `Store.read`."""
        self.open, self.reads = self.open + 1, self.reads + 1
        self.most = max(self.most, self.open)
        try:
            async for chunk in self._store.read(key, start, end):
                yield chunk
        finally:
            self.open -= 1


@settings(max_examples=30, deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=20), min_size=1, max_size=9),
    ahead=st.integers(0, 60),
)
async def test_any_number_of_parts_may_lie_beside_each_other(tmp_path_factory, parts, ahead):
    """A bound of streams is open, and the checksums of all parts are compared, wherever a stream was given up."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tidemill.storage.directory.READ_BYTES", 11)
        patched.setattr(merge, "STREAMS_MAX", 2)
        patched.setattr(merge, "AHEAD_BYTES_MAX", ahead)
        files = DirectoryStore(tmp_path_factory.mktemp("store"))
        refs = await stored(files, parts)
        store = Counting(files)
        got = b"".join([bytes(piece) async for piece in merged(store, refs, Sums())])
        assert got == b"".join(map(text, sorted({index for part in parts for index in part})))
        assert store.most <= 2
        assert store.open == 0
        key = refs[-1][1]
        content = b"".join([chunk async for chunk in files.read(key)])
        await files.write(key, pieces([content[:-2], bytes([content[-2] ^ 1]), content[-1:]]))
        with pytest.raises(PartError):
            [piece async for piece in merged(store, refs, Sums())]
        assert store.open == 0


async def test_parts_of_a_fast_and_a_slow_model_are_read_once(tmp_path):
    """Each has a few lines of either: it waits with its last ones, and its stream is opened for them again."""
    files = DirectoryStore(tmp_path)
    store = Counting(files)
    refs = await stored(files, [[2 * n, 2 * n + 1, 200 + n // 2] for n in range(100)])
    got = b"".join([bytes(piece) async for piece in merged(store, refs, Sums())])
    assert got == b"".join(map(text, range(250)))
    assert store.most <= merge.STREAMS_MAX
    assert store.reads <= 2 * len(refs)
