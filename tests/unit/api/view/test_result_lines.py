"""Pages of finished lines, from parts and from a file with its index."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.api.view.result_lines import PAGE_BYTES_MAX, RUN_BYTES_MAX, Found, Lines, bounded
from tidemill.results.files.compaction import write_part
from tidemill.results.files.merge import Sums, merged
from tidemill.results.files.output_splitter import OutputSplitter
from tidemill.results.state.active_batch import PartBuffer
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.log.part import index_key, part_key
from tidemill.schemas.resources.batch import Cut
from tidemill.schemas.resources.file import file_kind
from tidemill.storage.directory import DirectoryStore

BATCH = "batch_" + "1" * 32


def text(index):
    return b'{"n":%d,"pad":"%s"}\n' % (index, b"x" * (index % 5))


async def parts_of(store, groups):
    refs = []
    for number, (indices, failed) in enumerate(groups):
        shelf = PartBuffer()
        for index in dict.fromkeys(indices):
            shelf.add([LineMark(index=index, size=len(text(index)), failed=failed)], text(index))
        refs.append(await write_part(store, BATCH, number, shelf, failed=failed))
    return refs


async def copied(pieces):
    """Chunks as bytes, for a store."""
    if isinstance(pieces, list):
        yield b"".join(pieces)
        return
    async for piece in pieces:
        yield bytes(piece)


async def walk(lines, sources, limit):
    after, got = -1, []
    while found := await lines.page(sources, after, limit):
        got += zip((line.index for line in found), [line async for line in lines.read(found)], strict=True)
        after = found[-1].index
    return got


groups = st.lists(
    st.tuples(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.just(False)), min_size=1, max_size=5
)


@settings(max_examples=40, deadline=None)
@given(groups=groups, limit=st.integers(1, 9))
async def test_pages_of_a_running_batch_have_each_line_once(tmp_path_factory, groups, limit):
    """In order, for any parts and page size."""
    store = DirectoryStore(tmp_path_factory.mktemp("store"))
    await parts_of(store, groups)
    lines = Lines(store)
    sources = await lines.running(BATCH)
    expected = sorted({index for indices, _ in groups for index in indices})
    assert await walk(lines, sources, limit) == [(index, text(index).rstrip()) for index in expected]


async def test_pages_of_a_finished_file(tmp_path):
    """The index beside a file finds its lines; its kind tells output from errors."""
    store = DirectoryStore(tmp_path)
    refs = await parts_of(store, [([5, 1, 9], False), ([2, 3], False)])
    sums = Sums()

    await store.write("files/out", copied(merged(store, [(ref, part_key(BATCH, ref)) for ref in refs], sums)))
    await store.write(index_key("files/out"), copied([sums.index(0, sums.lines.done)]))
    lines = Lines(store)
    sources = lines.written([("output", "files/out")])
    assert [index for index, _ in await walk(lines, sources, 2)] == [1, 2, 3, 5, 9]


async def test_pages_cross_numbered_files(tmp_path):
    """Each has its own index, and a page may span two."""
    store = DirectoryStore(tmp_path)
    refs = await parts_of(store, [([5, 1, 9], False), ([2, 3], False)])
    sums, files = Sums(), []
    merge = merged(store, [(ref, part_key(BATCH, ref)) for ref in refs], sums)
    volumes = OutputSplitter(merge, sums.sizes, Cut(lines_max=2, bytes_max=1 << 20))
    while await volumes.has_more():
        first, kind = volumes.lines, file_kind(failed=False, number=len(files) + 1)
        files.append((kind, f"files/{kind}"))
        await store.write(f"files/{kind}", copied(volumes.next()))
        await store.write(index_key(f"files/{kind}"), copied([sums.index(first, volumes.lines)]))
    assert [kind for kind, _ in files] == ["output-00001", "output-00002", "output-00003"]
    lines = Lines(store)
    found = await walk(lines, lines.written(files), 3)
    assert found == [(index, text(index).rstrip()) for index in (1, 2, 3, 5, 9)]


async def test_failed_lines_come_from_failed_parts(tmp_path):
    """The kind of the part tells."""
    store = DirectoryStore(tmp_path)
    await parts_of(store, [([0, 2], False), ([1], True)])
    lines = Lines(store)
    found = await lines.page(await lines.running(BATCH), -1, 10)
    assert [(line.index, line.failed) for line in found] == [(0, False), (1, True), (2, False)]


@pytest.mark.parametrize(
    ("sizes", "kept"), [([1, 1], 2), ([PAGE_BYTES_MAX + 1, 1], 1), ([1, PAGE_BYTES_MAX, 1], 1)]
)
def test_a_page_is_bounded_but_never_empty(sizes, kept):
    """A line too large for a page is a page of its own."""
    found = [Found(index, False, "k", 0, size) for index, size in enumerate(sizes)]
    assert len(bounded(found)) == kept


@pytest.mark.parametrize("size", [RUN_BYTES_MAX // 4, RUN_BYTES_MAX * 2])
async def test_a_page_is_read_in_runs(tmp_path, size):
    """A slow reader keeps one run of lines in memory."""
    store, asked = DirectoryStore(tmp_path), []

    class Watched:
        def read(self, key, start, end):
            asked.append(end - start)
            return store.read(key, start, end)

    texts = [bytes([97 + n]) * (size - 1) + b"\n" for n in range(9)]
    await store.write("k", copied([*texts]))
    found = [Found(n, False, "k", n * size, (n + 1) * size) for n in range(9)]
    assert [line async for line in Lines(Watched()).read(found)] == [text[:-1] for text in texts]
    assert max(asked) <= max(RUN_BYTES_MAX, size)
    assert len(asked) == (3 if size < RUN_BYTES_MAX else 9)
    await store.close()
