"""The functions that work on the chunks of any store."""

from tidemill.schemas.ports import once, read_all


async def test_all_chunks_are_read_as_one_value():
    """In their order; without a chunk, the value is empty."""
    assert await read_all(once(b"a", b"", b"bc")) == b"abc"
    assert await read_all(once()) == b""
