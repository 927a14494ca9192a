"""Large replies in the memory budget."""

import asyncio
import tracemalloc

from support.scripted_server import OK, SECONDS, post, serving
from support.waiting import until

from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.memory_budget import LargeReplies

SHORT_SECONDS = 2


async def test_large_replies_share_a_budget(monkeypatch) -> None:
    """All arrive in the end, within the bound, and a small reply does not wait for them."""
    replies, size, count = LargeReplies(8 << 20), 4 << 20, 12
    large = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    async with serving(*[[large]] * count, [OK]) as (server, client):
        monkeypatch.setattr(client, "_replies", replies)
        held, most = [], 0

        async def take() -> None:
            nonlocal most
            answer = await post(server, client)
            assert isinstance(answer, Answer)
            assert answer.share is not None
            assert (len(answer.body), answer.share.size) == (size, size)
            most = max(most, replies.used)
            held.append(answer.share)

        tasks = [asyncio.create_task(take()) for _ in range(count)]
        await until(lambda: len(held) >= 1 and replies.used >= 8 << 20, "spent budget")
        assert len(held) < count
        assert await post(server, client) == Answer(200, b"{}", "abc", None)
        while len(held) < count or any(share.size and share._budget for share in held):
            for share in held:
                share.close()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert replies.used == 0
        assert most <= (8 << 20) + size + count * (1 << 20)


async def test_a_connection_resumes_after_a_pause_for_the_budget() -> None:
    """The pause does not count against the timeout, and the connection is reused."""
    replies = LargeReplies(100_000)
    first = replies.share(lambda: None, lambda: None)
    first.grow(200_000)
    first.finish()
    body = b"x" * 150_000
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with serving([whole[:100_000], whole[100_000:]], [OK]) as (server, client):
        client._replies = replies
        call = asyncio.create_task(post(server, client, SHORT_SECONDS))
        await until(lambda: replies.used > 200_000, "a reply that waits")
        await asyncio.sleep(1.2 * SHORT_SECONDS)
        assert not call.done()
        first.close()
        answer = await call
        assert isinstance(answer, Answer)
        assert answer.body == body
        assert await post(server, client) == Answer(200, b"{}", "abc", None)
        assert server.connections == 1
        assert replies.used == len(body)


async def test_an_incomplete_large_reply_frees_its_budget() -> None:
    """A truncated reply, a cancelled call, and a fetched page."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n"
    async with serving([head + b"x" * 200_000, None], [head + b"x" * 200_000], [head + b"x" * 300_000]) as (
        server,
        client,
    ):
        assert await post(server, client) is FailureKind.READ
        call = asyncio.create_task(post(server, client))
        await until(lambda: client._replies.used > 0, "a reply that has begun")
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await client.get(server.url, {}, SECONDS, 1 << 20)
        assert client._replies.used == 0


async def test_a_reply_in_tiny_chunks_takes_little_more_than_its_bytes() -> None:
    """The budget counts its bytes alone; an object for each chunk of two bytes would take 20 times as much."""
    size = 512 << 10
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"2\r\nab\r\n" * (size // 2)
    async with serving([chunks, b"0\r\n\r\n"], [OK]) as (server, client):
        tracemalloc.start()
        try:
            answer = await post(server, client)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert isinstance(answer, Answer)
        assert answer.body == b"ab" * (size // 2)
        assert most < len(chunks) + 4 * size
        assert await post(server, client) == Answer(200, b"{}", "abc", None)
