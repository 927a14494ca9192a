"""The network that can be cut, with an echo server."""

import asyncio
import gc
import random
import re
import socket
import threading
import warnings
from contextlib import suppress

import pytest
from support.cuts import BACK, OUT, Network
from support.waiting import WAIT_SECONDS_MAX

NOTHING_SECONDS = 0.2
ROUNDS = 20
CONNECT_SECONDS_MAX = 0.05
CLIENTS = 4
OPEN = []
"""Connections of the test that is running, both ends."""


async def echo(reader, writer):
    OPEN.append(writer)
    while data := await reader.read(1000):
        writer.write(data)
        await writer.drain()
    writer.close()


@pytest.fixture
async def way():
    """A way of `p` to `s`, and its network."""
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    with Network() as network:
        yield network, network.lay("p", "s", server.sockets[0].getsockname()[1])
        for writer in OPEN:
            writer.close()
    await asyncio.gather(*(writer.wait_closed() for writer in OPEN), return_exceptions=True)
    OPEN.clear()
    server.close()


async def connect(way):
    reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
    OPEN.append(writer)
    return reader, writer


async def says(reader, writer, text=b"hello"):
    """Whether sent data comes back."""
    writer.write(text)
    return await comes(reader, text)


async def comes(reader, text=b"hello"):
    try:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            return await reader.readexactly(len(text)) == text
    except (asyncio.IncompleteReadError, ConnectionError):
        return False


async def nothing_comes(reader):
    """Check that no data arrives, for long enough to see a fault."""
    task = asyncio.ensure_future(reader.read(1))
    done, _ = await asyncio.wait([task], timeout=NOTHING_SECONDS)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return not done


async def test_what_is_not_cut_passes(way):
    """In both directions, and it is counted."""
    _, lane = way
    reader, writer = await connect(lane)
    assert await says(reader, writer)
    assert lane.bytes == {OUT: 5, BACK: 5}


@pytest.mark.parametrize("cuts", [{OUT}, {BACK}, {OUT, BACK}])
async def test_what_is_cut_is_held_back_and_comes_later(way, cuts):
    """As in a network that loses packets: sent data arrives once the way heals."""
    network, lane = way
    reader, writer = await connect(lane)
    assert await says(reader, writer)
    network.set("p", "s", cuts=frozenset(cuts))
    writer.write(b"hello")
    assert await nothing_comes(reader)
    assert lane.bytes[BACK] == 5
    assert lane.bytes[OUT] == (5 if OUT in cuts else 10)
    network.heal()
    assert await comes(reader)


async def test_a_new_connection_is_taken_and_not_answered(way):
    """Until the way heals."""
    network, lane = way
    network.set("p", cuts=frozenset({OUT, BACK}))
    reader, writer = await connect(lane)
    writer.write(b"hello")
    assert await nothing_comes(reader)
    network.heal()
    assert await comes(reader)


async def test_one_of_two_connections(way):
    """The other one goes on."""
    network, lane = way
    both = [await connect(lane), await connect(lane)]
    for pair in both:
        assert await says(*pair)
    network.call(lane.cut_one(random.Random(1)))
    for _, writer in both:
        writer.write(b"hello")
    silent = [await nothing_comes(reader) for reader, _ in both]
    assert sorted(silent) == [False, True]
    network.heal()
    reader, _ = both[silent.index(True)]
    assert await comes(reader)


async def test_what_is_closed_breaks(way):
    """Also new connections."""
    network, lane = way
    reader, writer = await connect(lane)
    assert await says(reader, writer)
    network.set(server="s", closed=True)
    assert not await comes(reader)
    assert not await says(*await connect(lane))
    network.heal()
    assert await says(*await connect(lane))


async def test_what_is_half_open_is_silent_until_it_is_mended(way):
    """The server has closed its end, the process does not notice, and its data is lost meanwhile."""
    network, lane = way
    reader, writer = await connect(lane)
    assert await says(reader, writer)
    network.set("p", half_open=True)
    writer.write(b"hello")
    assert await nothing_comes(reader)
    new = await connect(lane)
    new[1].write(b"hello")
    assert await nothing_comes(new[0])
    network.heal()
    assert not await comes(reader)
    assert await comes(new[0])


async def test_what_is_caught_is_lost_where_it_is_closed(way):
    """Other data passes, before it on the same connection, and on other connections."""
    network, lane = way
    network.set("p", caught=re.compile(b"a.*word"))
    reader, writer = await connect(lane)
    assert await says(reader, writer)
    assert not lane.has_caught
    writer.write(b"a word")
    assert await nothing_comes(reader)
    assert lane.has_caught
    assert await says(*await connect(lane))
    network.set("p", closed=True)
    network.heal()
    assert not await comes(reader)
    assert lane.bytes[OUT] == 10


async def test_a_message_breaks_off_in_its_middle(way):
    """Half of it arrives, then the connection ends; the next connection works."""
    network, lane = way
    reader, writer = await connect(lane)
    network.set(truncated=BACK)
    writer.write(b"12345678")
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        assert await reader.read() == b"1234"
    assert await says(*await connect(lane))


async def test_what_is_slow_comes(way):
    """Later."""
    network, lane = way
    reader, writer = await connect(lane)
    network.set(seconds=0.05)
    began = asyncio.get_running_loop().time()
    assert await says(reader, writer)
    assert asyncio.get_running_loop().time() - began >= 0.1


async def test_other_ways_are_not_touched(way):
    """A cut is between one process and one server."""
    network, lane = way
    other = network.lay("q", "s", lane._target)
    network.set("p", cuts=frozenset({OUT, BACK}))
    assert await says(*await connect(other))


def test_a_network_closes_what_it_accepts_while_it_ends():
    """Python would leave such a connection open, and warn of it in a later test."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        for _ in range(ROUNDS):
            _crowd()
        gc.collect()
    assert not told


def _crowd():
    """Clients that go on connecting while a network ends."""
    with socket.create_server(("127.0.0.1", 0)) as target, Network() as network:
        port = network.lay("p", "s", target.getsockname()[1]).port
        crowd = [threading.Thread(target=_connect, args=(port,)) for _ in range(CLIENTS)]
        for client in crowd:
            client.start()
        network.set("p", closed=True)
    for client in crowd:
        client.join()


def _connect(port):
    """Connect until the port is closed."""
    with suppress(OSError):
        while True:
            socket.create_connection(("127.0.0.1", port), timeout=CONNECT_SECONDS_MAX).close()
