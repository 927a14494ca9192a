"""A read that stops early closes all stores below it at once."""

import ast
from contextlib import aclosing
from pathlib import Path

import pytest

from tidemill.api.dependencies import chunks_from_store
from tidemill.schemas.ports import chained
from tidemill.sealing.cipher import Cipher, new_key
from tidemill.sealing.store import FRAME_BYTES, SealedStore
from tidemill.storage import buckets
from tidemill.storage.metered import MeteredStore
from tidemill.storage.s3 import S3Store

ROOT = Path(__file__).parents[3]
STORES = [
    *(ROOT / "src/tidemill/storage").glob("*.py"),
    ROOT / "src/tidemill/sealing/store.py",
    ROOT / "schemas/ports.py",
    *(ROOT / "ingest/files").glob("*.py"),
    *(ROOT / "results/files").glob("*.py"),
]
SEALED = f"parts/batch_{'a' * 32}/1"


class Below:
    """A store that counts its open reads."""

    def __init__(self, content):
        self.content, self.open = content, 0

    async def read(self, key, start=0, end=None):
        del key
        self.open += 1
        try:
            for at in range(start, min(end or len(self.content), len(self.content)), FRAME_BYTES):
                yield self.content[at : min(at + FRAME_BYTES, end or len(self.content))]
        finally:
            self.open -= 1


class Keys:
    """A vault with one key."""

    cipher_of_all = Cipher(new_key(), "0" * 16)

    async def cipher(self, *_):
        return self.cipher_of_all

    async def sealing_cipher(self, *_):
        return self.cipher_of_all


async def sealed():
    """A sealed object, as the store below has it."""
    kept = bytearray()

    class Written:
        async def write(self, _, chunks):
            async for chunk in chunks:
                kept.extend(chunk)
            return len(kept)

    async def content():
        yield b"x" * (5 * FRAME_BYTES)

    await SealedStore(Written(), Keys()).write(SEALED, content())
    return bytes(kept)


async def readers():
    """Each reader of another, and the store below."""
    for wrap in (
        lambda below: MeteredStore(below).read("files/a"),
        lambda below: chained(below, ["a", "b"]),
        lambda below: chunks_from_store(below.read("a")),
        lambda below: SealedStore(below, Keys()).read("files/a"),
    ):
        below = Below(b"x" * (5 * FRAME_BYTES))
        yield wrap(below), below
    below = Below(await sealed())
    yield SealedStore(below, Keys()).read(SEALED), below
    store, below = S3Store.__new__(S3Store), Below(b"x" * (5 * FRAME_BYTES))
    store._download = lambda _, start, end: below.read("a", start, end)
    store._where = lambda key: {"Key": key}
    yield store.read("a"), below


async def test_a_read_that_stops_early_is_closed():
    """The reader below is closed when the call returns, and not some time later by the garbage collector."""
    async for reading, below in readers():
        async with aclosing(reading):
            assert await anext(reading)
            assert below.open
        assert not below.open


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.name)
def test_a_store_closes_what_it_reads(path):
    """A generator that iterates over the read of a store closes it."""
    for function in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(function, ast.AsyncFunctionDef) and any(
            isinstance(n, ast.Yield) for n in ast.walk(function)
        ):
            loops = [node.iter for node in ast.walk(function) if isinstance(node, ast.AsyncFor)]
            calls = [ast.unparse(loop.func) for loop in loops if isinstance(loop, ast.Call)]
            assert not [call for call in calls if call.endswith(("read", "_opened", "_download"))]


@pytest.mark.parametrize(("text", "size"), [("bytes 0-9/10", "10"), (f"bytes 0-9/{'9' * 5_000}", None)])
def test_a_size_is_a_number_of_bytes(text, size):
    """Python converts no longer one, and the server may belong to a user."""
    found = buckets._TOTAL.match(text)
    assert (found and found[1]) == size
