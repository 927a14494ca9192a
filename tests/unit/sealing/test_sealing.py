"""Encryption keys of batches: changed, moved or destroyed data cannot be opened."""

import asyncio
import base64
import os
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.facts import commands
from support.secrets_topic import Topic

from tidemill.configuration.settings import Settings, SettingsError
from tidemill.kafka.connection import LogUnavailable
from tidemill.results.files.part_recovery import PartRecovery
from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import DecodeError, LineMark, RequestHead, lines_headers
from tidemill.schemas.log.messages import Erasure
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.batch import RequestCounts
from tidemill.sealing import store as sealed
from tidemill.sealing.cipher import SEAL_BYTES, Cipher, Damaged, new_key
from tidemill.sealing.key_manager import wrapper
from tidemill.sealing.records import open_outcome, open_request, seal_outcome, seal_request
from tidemill.sealing.store import FRAME_BYTES, SealedStore
from tidemill.sealing.vault import NoKey
from tidemill.sealing.wrapping import FileWrapper, KeyFileError, KeyUnavailable, new_key_text
from tidemill.storage.directory import DirectoryStore

A, B = (f"batch_{digit * 32}" for digit in "ab")
KEY = Cipher(new_key())
CANARY = b"canary-4711"


@pytest.fixture
def keys(tmp_path):
    """A file with one key."""
    (tmp_path / "keys").write_text(new_key_text())
    return FileWrapper(tmp_path / "keys")


@given(st.binary(max_size=200), st.binary(max_size=20), st.data())
def test_changed_data_does_not_open(content, place, data):
    """A bit, an end, another place, another key: each raises `Damaged`."""
    blob = KEY.seal(content, place)
    assert KEY.open(blob, place) == content
    assert len(blob) == len(content) + SEAL_BYTES == len(content) + codec.SEAL_BYTES
    bit = data.draw(st.integers(0, len(blob) * 8 - 1))
    changed = bytearray(blob)
    changed[bit // 8] ^= 1 << (bit % 8)
    cut = blob[: data.draw(st.integers(0, len(blob) - 1))]
    for cipher, piece, where in (
        (KEY, bytes(changed), place), (KEY, cut, place), (KEY, blob, place + b"x"),
        (Cipher(new_key()), blob, place),
    ):  # fmt: skip
        with pytest.raises(Damaged):
            cipher.open(piece, where)


def test_nonces_differ():
    """For one key, in any process."""
    assert max(Counter(KEY.seal(b"", b"")[:12] for _ in range(20_000)).values()) == 1


async def test_the_key_file(tmp_path):
    """A new first line wraps, the old one unwraps; another file's key does not."""
    path = tmp_path / "keys"
    path.write_text(new_key_text())
    before = path.read_bytes()
    name, wrapped = await FileWrapper(path).wrap("p", "x", b"k" * 32)
    path.write_bytes(base64.b64encode(os.urandom(32)) + b"\n" + before)
    later = FileWrapper(path)
    assert await later.unwrap("p", "x", name, wrapped) == b"k" * 32
    assert (await later.wrap("p", "x", b"k" * 32))[0] != name
    for project, place in (("q", "x"), ("p", "y")):
        with pytest.raises(Damaged):
            await later.unwrap(project, place, name, wrapped)
    with pytest.raises(KeyUnavailable):
        await later.unwrap("p", "x", "other", wrapped)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"short\n", b"\xff", base64.b64encode(b"k" * 31)],
    ids=["missing", "empty", "no key", "binary", "31 bytes"],
)
def test_an_invalid_key_file(tmp_path, content):
    """It is an error of the settings, which does not quote it."""
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KeyFileError):
        FileWrapper(path)
    with pytest.raises(SettingsError, match="encryption_key_file") as caught:
        wrapper(Settings(encrypt_log=True, encryption_key_file=path))
    assert b"short" not in str(caught.value).encode()
    assert wrapper(Settings(data=tmp_path / "none")) is None


async def test_a_key_is_on_the_log_before_its_first_use(keys):
    """Readers wait for it; without encryption, or without the log, no process creates one."""
    topic = Topic()
    writer, reader = topic.vault(keys), topic.vault(keys, seals=False)
    assert await reader.sealing_cipher(A, "p") is None
    topic.is_away = True
    with pytest.raises(LogUnavailable):
        await writer.sealing_cipher(A, "p")
    assert not writer.has_key(A)
    topic.is_away = False
    made = await asyncio.gather(*(writer.sealing_cipher(A, "p") for _ in range(5)))
    assert len(topic.records) == 1
    blob = made[0].seal(b"x", b"place")
    assert (await reader.cipher(A, made[4].key_id)).open(blob, b"place") == b"x"
    assert (await reader.sealing_cipher(A)).key_id == made[0].key_id
    assert CANARY not in topic.records[0][1]


async def test_two_processes_may_each_create_a_key(keys):
    """Readers have both."""
    topic = Topic()
    made = [await topic.vault(keys).sealing_cipher(A, "p") for _ in range(2)]
    reader = topic.vault(keys)
    for cipher in made:
        assert (await reader.cipher(A, cipher.key_id)).open(cipher.seal(b"x", b""), b"") == b"x"


async def test_a_destroyed_key_is_gone_for_all(keys):
    """That of one batch; also for a process that had it unwrapped, and after a restart."""
    topic = Topic()
    writer, reader = topic.vault(keys), topic.vault(keys)
    cipher, other = await writer.sealing_cipher(A, "p"), await writer.sealing_cipher(B, "p")
    await reader.cipher(A, cipher.key_id)
    await writer.destroy(A)
    assert topic.records[-1] == (f"{A}/{cipher.key_id}", None)
    await reader.sealing_cipher(B)
    await reader._caught_up()
    for vault in (writer, reader, topic.vault(keys)):
        with pytest.raises(NoKey):
            await vault.cipher(A, cipher.key_id)
        assert await vault.cipher(B, other.key_id)


async def test_a_wrapped_key_works_for_its_batch_only(keys):
    """A writer of the topic cannot give a batch a known key, or another batch's."""
    topic = Topic()
    vault = topic.vault(keys)
    cipher = await vault.sealing_cipher(A, "p")
    topic.records.append((f"{B}/{cipher.key_id}", topic.records[0][1]))
    topic.records.append((f"{B}/x", b"{"))
    for key_id in (cipher.key_id, "x", "none"):
        with pytest.raises(NoKey):
            await vault.cipher(B, key_id)


def head(batch_id=A, first=3):
    """What a record of requests says."""
    return RequestHead(batch_id=batch_id, project="p", first=first, deadline=9, url="/v1/embeddings")


async def test_requests_are_sealed_for_their_place(keys):
    """Headers stay readable; a moved, truncated or changed value is detected."""
    vault = Topic().vault(keys)
    value = b"\n".join([CANARY] * 3)
    said, blob = await seal_request(vault, head(), value)
    said = codec.request_head(codec.request_headers(said))
    assert (said.seal.lines, said.first, CANARY in blob) == (3, 3, False)
    assert await open_request(vault, said, blob) == value
    _, other = await seal_request(vault, head(first=6), value)
    for wrong in (other, blob[:-1], blob[:5], b"", blob[:-1] + bytes([blob[-1] ^ 1])):
        with pytest.raises(DecodeError):
            await open_request(vault, said, wrong)
    with pytest.raises(DecodeError):
        await open_request(vault, replace(said, indices=(3, 7, 9)), blob)
    clear = Topic().vault(keys, seals=False)
    assert await seal_request(clear, head(), value) == (head(), value)


async def test_outcomes_are_sealed_with_their_marks(keys):
    """The marks still add up; another record's value is detected."""
    vault = Topic().vault(keys)
    await vault.sealing_cipher(A, "p")
    lines = {index: b"%d %b\n" % (index, CANARY) for index in (1, 2)}
    headers = {at: lines_headers(A, [LineMark(at, len(text), failed=False)]) for at, text in lines.items()}
    sealed = {index: await seal_outcome(vault, A, lines[index], headers[index]) for index in lines}
    value, said = sealed[1]
    assert CANARY not in value
    assert codec.lines_marks(said, len(value))[0] == A
    opened, text = await open_outcome(vault, said, value)
    assert (text, codec.lines_marks(opened, len(text))[1][0].index) == (lines[1], 1)
    for wrong in (sealed[2][0], value[:-1], value + b"x", b""):
        with pytest.raises(DecodeError):
            await open_outcome(vault, said, wrong)
    with pytest.raises(DecodeError):
        codec.lines_marks(said, len(value) + 1)
    assert await seal_outcome(vault, B, lines[1], headers[1]) == (lines[1], headers[1])
    await vault.destroy(A)
    with pytest.raises(NoKey):
        await open_outcome(vault, said, value)


async def chunks(content, size):
    """A content in pieces."""
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def read(store, key, start=0, end=None):
    """A stretch of an object."""
    return b"".join([chunk async for chunk in store.read(key, start, end)])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 9), st.data())
def test_any_range_of_a_sealed_object_is_read(tmp_path_factory, size, piece, data):
    """As of a plain object, with frames of any size."""
    content = bytes(range(size))
    start = data.draw(st.integers(0, size + 2))
    end = data.draw(st.none() | st.integers(start, size + 9))

    async def look():
        folder = tmp_path_factory.mktemp("store")
        (folder / "keys").write_text(new_key_text())
        vault = Topic().vault(FileWrapper(folder / "keys"))
        await vault.sealing_cipher(A, "p")
        below = DirectoryStore(folder / "objects")
        store = SealedStore(below, vault)
        assert await store.write(f"parts/{A}/1", chunks(content, piece)) == size
        assert await store.size(f"parts/{A}/1") == size
        assert await read(store, f"parts/{A}/1", start, end) == content[start:end]
        assert (await read(below, f"parts/{A}/1")).startswith(b"TMS1")
        await below.close()

    frame = sealed.FRAME_BYTES, sealed.SEALED_BYTES
    sealed.FRAME_BYTES, sealed.SEALED_BYTES = 8, 8 + SEAL_BYTES
    try:
        asyncio.run(look())
    finally:
        sealed.FRAME_BYTES, sealed.SEALED_BYTES = frame


async def test_a_changed_sealed_object_is_missing(tmp_path, keys):
    """Cut at a frame, moved, exchanged, or without its key; other objects stay in clear."""
    vault = Topic().vault(keys)
    await vault.sealing_cipher(A, "p")
    below = DirectoryStore(tmp_path / "objects")
    store = SealedStore(below, vault)
    content = os.urandom(FRAME_BYTES) + CANARY + os.urandom(FRAME_BYTES)
    await store.write(f"parts/{A}/1", chunks(content, 1 << 20))
    await store.write(f"parts/{B}/1", chunks(content, 1 << 20))
    assert await store.write("files/f", chunks(CANARY, 99)) == len(CANARY)
    assert (await read(below, "files/f"), await read(below, f"parts/{B}/1")) == (CANARY, content)
    whole = await read(below, f"parts/{A}/1")
    assert CANARY not in whole
    frame = FRAME_BYTES + SEAL_BYTES
    exchanged = whole[:20] + whole[20 + frame : 20 + 2 * frame] + whole[20 : 20 + frame] + whole[20 + 2 * frame :]
    wrong = [whole[: 20 + 2 * frame], exchanged, whole[:-1], whole[:20], b"TMS1" + b"0" * 16 + whole[20:]]
    for place, damaged in [(f"parts/{A}/1", piece) for piece in wrong] + [(f"parts/{A}/2", whole)]:
        await below.write(place, chunks(damaged, 1 << 20))
        with pytest.raises(NotFound):
            await read(store, place)
    await below.write(f"parts/{A}/1", chunks(whole, 1 << 20))
    assert await read(store, f"parts/{A}/1") == content
    joined = await store.join("files/in", [f"parts/{A}/1", f"parts/{B}/1"])
    assert (joined, await read(below, "files/in")) == (2 * len(content), 2 * content)
    await vault.destroy(A)
    with pytest.raises(NotFound):
        await read(store, f"parts/{A}/1")
    await below.close()


async def test_late_results_for_a_destroyed_key_are_not_in_clear(tmp_path, keys):
    """A call was in flight when its cancelled batch was deleted: its result is discarded."""
    topic, below = Topic(), DirectoryStore(tmp_path / "objects")
    ingest, processors, api = (topic.vault(keys) for _ in range(3))
    await ingest.sealing_cipher(A, "p")
    await processors.catch_up()
    topic.records.append((A, codec.encode(Erasure(project="p", at=100))))
    await api.destroy(A)
    await processors.catch_up()
    headers = codec.lines_headers(A, [LineMark(0, len(CANARY), failed=False)])
    with pytest.raises(NoKey):
        await seal_outcome(processors, A, CANARY, headers)
    await SealedStore(below, processors).write(f"results-large/{A}/0-x", chunks(CANARY, 99))
    assert [key async for key in below.keys("results-large/")] == []
    assert await processors.sealing_cipher(B) is None
    await below.close()


async def test_an_object_is_created_sealed_and_once(tmp_path, keys):
    """Another process, which has the key too, reads it; for a deleted batch nothing is written."""
    topic, below = Topic(), DirectoryStore(tmp_path / "objects")
    one, other = (topic.vault(keys) for _ in range(2))
    await one.sealing_cipher(A, "p")
    await other.catch_up()
    key = f"results-large/{A}/verdict"
    assert await SealedStore(below, one).create(key, CANARY)
    assert not await SealedStore(below, other).create(key, b"other")
    assert CANARY not in b"".join([chunk async for chunk in below.read(key)])
    assert b"".join([chunk async for chunk in SealedStore(below, other).read(key)]) == CANARY
    await below.delete(key)
    topic.records.append((A, codec.encode(Erasure(project="p", at=100))))
    await other.catch_up()
    assert await SealedStore(below, other).create(key, CANARY)
    assert [found async for found in below.keys("results-large/")] == []


@pytest.mark.parametrize("fault", ["destroyed", "damaged"])
async def test_results_of_a_batch_with_a_lost_key_do_not_count_as_stored(tmp_path, keys, fault):
    """They wait, visibly, since the batch is not deleted."""
    topic, below = Topic(), DirectoryStore(tmp_path / "objects")
    vault, reader = topic.vault(keys), topic.vault(keys)
    cipher = await vault.sealing_cipher(A, "p")
    await reader.catch_up()
    if fault == "destroyed":
        await vault.destroy(A)
    else:
        topic.records.append((f"{A}/{cipher.key_id}", b"{"))
    await reader.catch_up()
    with pytest.raises(KeyUnavailable):
        await SealedStore(below, reader).write(f"parts/{A}/0-x", chunks(CANARY, 99))
    headers = codec.lines_headers(A, [LineMark(0, len(CANARY), failed=False)])
    with pytest.raises(KeyUnavailable):
        await seal_outcome(reader, A, CANARY, headers)
    await below.close()


async def test_a_process_that_does_not_know_a_key_joins_sealed_parts(tmp_path, keys):
    """As the next owner of a stream whose parts another process has written."""
    topic, below = Topic(), DirectoryStore(tmp_path / "objects")
    writer, joiner = topic.vault(keys), topic.vault(keys)
    await writer.sealing_cipher(A, "p")
    await SealedStore(below, writer).write(f"intake/{A}/1", chunks(CANARY, 99))
    assert await SealedStore(below, joiner).join("files/in", [f"intake/{A}/1"]) == len(CANARY)
    assert await read(below, "files/in") == CANARY
    await below.close()


async def test_a_record_that_is_still_sealed_counts_as_destroyed(tmp_path, keys):
    """A rebuild distinguishes it from a damaged one."""
    vault = Topic().vault(keys)
    await vault.sealing_cipher(A, "p")
    text, kind = b"line\n", (codec.KIND, codec.LINES)
    marked = lines_headers(A, [LineMark(0, len(text), failed=False)])
    value, headers = await seal_outcome(vault, A, text, [kind, *marked[1:]])
    store = DirectoryStore(tmp_path / "objects")
    batch = codec.decode_command(commands(0, 1)[0][2]).batch.model_copy(update={"id": A})
    gathering = PartRecovery(batch.model_copy(update={"request_counts": RequestCounts(total=1)}), 1, store=store)
    await gathering.add(headers, value)
    assert (gathering.missing, gathering.unreadable, gathering.destroyed) == (1, 1, 1)
    await gathering.add(*await open_outcome(vault, headers, value))
    assert gathering.missing == 0
    await store.close()
