"""Parts and merge: whatever the parts hold, each line is written once and in order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.directory import DirectoryStore
from tidemill.results.merge import Sums, merged
from tidemill.results.shelf import Shelf
from tidemill.schemas.codec import LineMark
from tidemill.schemas.part import PartError, PartRef
from tidemill.schemas.ports import NotFound

parts_of_lines = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=30), max_size=6)


def text(index):
    return b"line %d %s\n" % (index, b"x" * (index % 7))


async def pieces(data):
    for piece in data:
        yield piece


async def stored(store, parts):
    refs = []
    for number, indices in enumerate(parts):
        shelf = Shelf()
        for index in dict.fromkeys(indices):
            line = text(index)
            shelf.add(LineMark(index=index, size=len(line), failed=False, usage=(1, 0, 2, 0)), line)
        first, content = shelf.take()
        assert shelf.size == 0
        assert first == min(indices)
        await store.write(f"parts/{number}", pieces(content))
        refs.append((PartRef(number=number, failed=False, first=first), f"parts/{number}"))
    return refs


@settings(max_examples=60, deadline=None)
@given(parts=parts_of_lines)
async def test_each_line_once_and_in_order(tmp_path_factory, parts):
    """The merge equals the sorted set, also where parts overlap as they may after a crash."""
    store = DirectoryStore(tmp_path_factory.mktemp("store"))
    sums = Sums()
    got = b"".join([bytes(piece) async for piece in merged(store, await stored(store, parts), sums)])
    expected = sorted({index for part in parts for index in part})
    assert got == b"".join(map(text, expected))
    assert sums.lines.done == len(expected)
    assert sums.double == sum(len(set(part)) for part in parts) - len(expected)
    assert sums.usage == (len(expected), 0, 2 * len(expected), 0)
    assert list(sums.indices) == expected
    assert list(sums.sizes) == [len(text(index)) for index in expected]


async def test_a_part_larger_than_a_chunk(tmp_path, monkeypatch):
    """Chunks of the store and lines of a part have nothing to do with each other."""
    monkeypatch.setattr("tidemill.directory.READ_BYTES", 7)
    store = DirectoryStore(tmp_path)
    refs = await stored(store, [list(range(0, 40, 2)), list(range(1, 40, 2))])
    got = b"".join([bytes(piece) async for piece in merged(store, refs, Sums())])
    assert got == b"".join(map(text, range(40)))


async def test_a_missing_part_is_an_error(tmp_path):
    """A state that names a part which is not there is never papered over."""
    refs = [(PartRef(number=0, failed=False, first=0), "parts/0")]
    with pytest.raises(NotFound):
        [piece async for piece in merged(DirectoryStore(tmp_path), refs, Sums())]


@pytest.mark.parametrize("content", [b"", b"TM", b"nothing of the kind", b"TMP1\x02\x00\x00\x00abc"])
async def test_what_is_no_part_is_an_error(tmp_path, content):
    """Cut or foreign objects are refused."""
    store = DirectoryStore(tmp_path)
    await store.write("parts/0", pieces([content]))
    refs = [(PartRef(number=0, failed=False, first=0), "parts/0")]
    with pytest.raises(PartError):
        [piece async for piece in merged(store, refs, Sums())]
