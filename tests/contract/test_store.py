"""What every store does, whatever is behind its door."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator

import aioboto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.waiting import WAIT_SECONDS_MAX

from tidemill.results.files.compaction import write_part
from tidemill.results.files.merge import STREAMS_MAX, Sums, merged
from tidemill.results.state.active_batch import PartBuffer
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.log.part import part_key
from tidemill.schemas.ports import READ_BYTES, NotFound, Store
from tidemill.storage import s3
from tidemill.storage.address import open_store
from tidemill.storage.directory import DirectoryStore

FOREIGN = [
    "",
    "/",
    "../x",
    "a/../b",
    "a//b",
    "/a",
    "a/",
    ".partial/x",
    "a\n",
    "a\0",
    "é",
    "a b",
    "a" * 300,
    "a/" * 9 + "a",
]


class Broken(Exception):
    """The source of the chunks failed."""


@pytest.fixture(params=["directory", "s3"])
async def store(request, tmp_path, monkeypatch) -> AsyncIterator[Store]:
    """One store of each door, empty."""
    url = (tmp_path / "a store").as_uri()
    if request.param == "s3":
        for name, value in request.getfixturevalue("s3").items():
            monkeypatch.setenv(name, value)
        bucket = f"test-{secrets.token_hex(6)}"
        async with aioboto3.Session().client("s3") as client:
            await client.create_bucket(Bucket=bucket)
        url = f"s3://{bucket}/some/prefix"
    opened = open_store(url)
    yield opened
    await opened.close()


async def chunks_of(*chunks: bytes) -> AsyncIterator[bytes]:
    """The chunks, each after a turn of the loop."""
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk


async def broken_after(*chunks: bytes) -> AsyncIterator[bytes]:
    """The chunks, then a failure."""
    for chunk in chunks:
        yield chunk
    raise Broken


async def content(store: Store, key: str, start: int = 0, end: int | None = None) -> bytes:
    """All bytes of a range."""
    return b"".join([chunk async for chunk in store.read(key, start, end)])


async def keys(store: Store, prefix: str) -> list[str]:
    """All keys of a prefix."""
    return [key async for key in store.keys(prefix)]


async def test_a_written_object_is_read_back(store):
    """Bytes come back as they went in, and both ends agree on the size."""
    assert await store.write("files/file-1", chunks_of(b"one\n", b"", b"two\n")) == 8
    assert await content(store, "files/file-1") == b"one\ntwo\n"
    assert await store.size("files/file-1") == 8


async def test_an_empty_object_is_an_object(store):
    """It has size 0 and no chunk."""
    assert await store.write("empty", chunks_of()) == 0
    assert await store.size("empty") == 0
    assert await content(store, "empty") == b""


async def test_a_large_object_comes_in_bounded_chunks(store):
    """No chunk is larger than READ_BYTES, and their sum is the object."""
    piece = bytes(range(256)) * 12_289
    assert await store.write("large", chunks_of(*[piece] * 7)) == 7 * len(piece)
    chunks = [chunk async for chunk in store.read("large")]
    assert max(map(len, chunks)) <= READ_BYTES
    assert b"".join(chunks) == piece * 7


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 0), (0, 4), (3, 7), (7, None), (9, 100), (10, None), (50, None), (50, 60), (5, 5), (7, 3)],
)
async def test_a_range_is_read(store, start, end):
    """Ranges are those of a slice."""
    await store.write("range", chunks_of(b"0123456789"))
    assert await content(store, "range", start, end) == b"0123456789"[start:end]


MIB = 1 << 20


@pytest.mark.parametrize(
    "sizes",
    [[], [0], [3, 0, 4], [5 * MIB] * 3, [6 * MIB, 1, 7 * MIB, 2 * MIB], [1, 5 * MIB, 9 * MIB], [4 * MIB] * 4],
)
async def test_objects_are_joined(store, sizes):
    """Whatever their sizes, the whole has their bytes in order, and they stay."""
    contents = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    sources = [f"pieces/{number}" for number in range(len(sizes))]
    for source, data in zip(sources, contents, strict=True):
        await store.write(source, chunks_of(data))
    assert await store.join("whole", sources) == sum(sizes)
    assert await content(store, "whole") == b"".join(contents)
    assert await keys(store, "pieces/") == sources


async def test_a_join_without_a_source_leaves_nothing(store):
    """A source that is missing leaves nothing of the whole."""
    await store.write("pieces/0", chunks_of(bytes(6 * MIB)))
    with pytest.raises(NotFound):
        await store.join("whole", ["pieces/0", "pieces/1"])
    assert await keys(store, "") == ["pieces/0"]


async def test_a_missing_object_is_not_found(store):
    """Read and size say so; deleting it is fine; neither is a folder an object."""
    await store.write("here/x", chunks_of(b"x"))
    for key in ("there", "here/y", "here", "here/x/y"):
        with pytest.raises(NotFound):
            await content(store, key)
        with pytest.raises(NotFound):
            await store.size(key)
        await store.delete(key)
    assert await keys(store, "") == ["here/x"]


async def test_a_broken_write_leaves_nothing(store):
    """The failure passes through; what was there before stays."""
    with pytest.raises(Broken):
        await store.write("new", broken_after(b"x" * (3 << 20)))
    await store.write("old", chunks_of(b"old"))
    with pytest.raises(Broken):
        await store.write("old", broken_after(b"half"))
    assert await keys(store, "") == ["old"]
    assert await content(store, "old") == b"old"


async def test_a_cancelled_write_leaves_nothing(store):
    """A writer that is cancelled amid its chunks stores nothing."""
    began, never = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * (2 << 20)
        began.set()
        await never.wait()

    writing = asyncio.create_task(store.write("slow", slow()))
    await began.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await keys(store, "") == []


async def test_writing_again_replaces(store):
    """Readers get the last write; a reader that has begun continues with its object."""
    await store.write("twice", chunks_of(b"a" * (2 << 20)))
    reading = store.read("twice")
    first = await anext(reading)
    await store.write("twice", chunks_of(b"b"))
    await reading.aclose()
    assert set(first) == {ord("a")}
    assert await content(store, "twice") == b"b"


async def test_an_object_is_not_seen_before_it_is_whole(store):
    """While chunks arrive there is no object and no key."""
    seen = []

    async def watched() -> AsyncIterator[bytes]:
        yield b"x" * (2 << 20)
        seen.extend(await keys(store, ""))
        with pytest.raises(NotFound):
            await store.size("whole")
        yield b"y"

    await store.write("whole", watched())
    assert seen == []
    assert await store.size("whole") == (2 << 20) + 1


async def test_deleted_objects_are_gone(store):
    """Deleting twice is fine, neighbours stay."""
    for key in ("d/e/one", "d/e/two", "d/three"):
        await store.write(key, chunks_of(b"x"))
    await store.delete("d/e/one")
    await store.delete("d/e/one")
    assert await keys(store, "d/") == ["d/e/two", "d/three"]
    await store.delete("d/e/two")
    await store.write("d/e/two", chunks_of(b"again"))
    assert await content(store, "d/e/two") == b"again"


async def test_keys_of_a_prefix(store):
    """All of them and no others; a prefix may end within a name."""
    names = ["a-b", "a.b", "a/b-c", "a/b/c", "aa", "b", "parts/batch_1/1", "parts/batch_2/1"]
    for name in names:
        await store.write(name, chunks_of(b"x"))
    for prefix in ("", "a", "a/", "a/b", "a/b/", "parts/batch_1/", "parts/batch_", "c", "parts/none/"):
        assert sorted(await keys(store, prefix)) == sorted(name for name in names if name.startswith(prefix))


async def test_folders_beside_a_prefix_are_not_opened(tmp_path, monkeypatch):
    """There may be a folder for each batch."""
    store, opened = DirectoryStore(tmp_path), []
    for name in ("parts/batch_1/1", "parts/batch_1-x/1", "parts/batch_2/1", "files/1"):
        await store.write(name, chunks_of(b"x"))
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(path) or scandir(path))
    assert await keys(store, "parts/batch_1") == ["parts/batch_1-x/1", "parts/batch_1/1"]
    assert opened == [tmp_path / "parts", tmp_path / "parts/batch_1-x", tmp_path / "parts/batch_1"]


async def test_keys_of_a_folder_come_in_order(store):
    """In the order of their bytes, whatever the order they were written in, and however many there are."""
    names = [f"parts/{number:06}{suffix}" for number in range(30) for suffix in ("", "-a", ".b", "_c", "A")]
    await asyncio.gather(*(store.write(name, chunks_of(b"x")) for name in reversed(names)))
    assert await keys(store, "parts/") == sorted(names)


async def test_many_write_and_delete_at_once(store):
    """Writers and deleters of one folder do not disturb each other."""

    async def write_and_delete(number: int) -> None:
        for _ in range(5):
            await store.write(f"busy/folder/{number}", chunks_of(b"%d" % number))
            assert await content(store, f"busy/folder/{number}") == b"%d" % number
            await store.delete(f"busy/folder/{number}")

    await asyncio.gather(*map(write_and_delete, range(8)))
    assert await keys(store, "busy") == []


@pytest.mark.parametrize("key", FOREIGN)
async def test_no_key_leads_out(store, key):
    """A key that could name something else is refused before anything is touched."""
    with pytest.raises(ValueError, match="key"):
        await store.write(key, chunks_of(b"x"))
    with pytest.raises(ValueError, match="key"):
        await content(store, key)
    with pytest.raises(ValueError, match="key"):
        await store.size(key)
    with pytest.raises(ValueError, match="key"):
        await store.delete(key)


@pytest.mark.parametrize("prefix", ["../", "/", "a/../", "a//", ".partial/", "a\0"])
async def test_no_prefix_leads_out(store, prefix):
    """Listing is confined as well."""
    with pytest.raises(ValueError, match="prefix"):
        await keys(store, prefix)


@settings(deadline=None, max_examples=30)
@given(size=st.integers(0, 3_000_000), cut=st.integers(5_000, 700_000))
def test_any_cutting_of_the_chunks(tmp_path_factory, size, cut):
    """The cuts of the writer do not matter."""
    data = bytes(size % 251 for size in range(1000)) * (size // 1000 + 1)

    async def round_trip() -> None:
        store = DirectoryStore(tmp_path_factory.getbasetemp() / "cuts")
        await store.write("x", chunks_of(*(data[at : at + cut] for at in range(0, len(data), cut))))
        assert await content(store, "x") == data

    asyncio.run(round_trip())


def test_a_crashed_write_is_collected_when_old(tmp_path):
    """What a crash left does no harm, goes when it is old, and stays while it may be at work."""
    partial = tmp_path / ".partial"
    partial.mkdir()
    (partial / "old").write_bytes(b"x")
    os.utime(partial / "old", (0, 0))
    (partial / "young").write_bytes(b"x")
    DirectoryStore(tmp_path)
    assert [path.name for path in partial.iterdir()] == ["young"]


async def test_a_merge_of_many_parts_leaves_connections_for_others(store, monkeypatch):
    """Each part waits with its last line for all others, with more of it unread than a connection buffers."""
    monkeypatch.setattr(s3, "CONNECTIONS_MAX", STREAMS_MAX + 4)
    refs, size = [], 4 * READ_BYTES
    for number in range(STREAMS_MAX + 8):
        buffer = PartBuffer()
        for index in (number, 1_000 + number):
            line = b"%d %s\n" % (index, b"x" * size)
            buffer.add([LineMark(index=index, size=len(line), failed=False)], line)
        part = await write_part(store, "batch_b", number, buffer, failed=False)
        refs.append((part, part_key("batch_b", part)))
    sums, length = Sums(), 0
    async for piece in merged(store, refs, sums):
        length += len(piece)
        if sums.lines.done == len(refs):
            assert await asyncio.wait_for(store.size(refs[0][1]), WAIT_SECONDS_MAX)
    assert sums.lines.done == 2 * len(refs)
    assert length == sum(sums.sizes)


async def test_one_of_several_calls_creates_an_object(store):
    """The others say that it is there, at the same moment and later; a deleted one may be created again."""
    key, contents = "files/a", [b"%d" % number for number in range(8)]
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        created = await asyncio.gather(*(store.create(key, content) for content in contents))
    assert created.count(True) == 1
    written = contents[created.index(True)]
    assert b"".join([chunk async for chunk in store.read(key)]) == written
    assert not await store.create(key, b"late")
    assert b"".join([chunk async for chunk in store.read(key)]) == written
    assert [found async for found in store.keys("")] == [key]
    await store.delete(key)
    assert await store.create(key, b"again")
