"""The token of `tidemill produce`."""

from support.service import KEY, Service

from tidemill.client.http.client import Client
from tidemill.client.production import Token


async def test_a_token_is_renewed_after_half_of_its_lifetime():
    """By the monotonic clock of this machine."""
    times = iter((0.0, 49.0, 50.0, 99.0, 100.0))
    async with Service() as service, Client(service.url, KEY) as client:
        token = Token(client, "crawl", lambda: next(times))
        seen = [(await token.header())[1][-1:] for _ in range(5)]
    assert seen == [b"1", b"1", b"2", b"2", b"3"]


async def test_a_restart_of_the_api_does_not_end_a_long_stream(pauses):
    """The broker has a part of the lines by then, and the command would send them again."""
    times = iter((0.0, 60.0))
    async with Service() as service, Client(service.url, KEY) as client:
        token = Token(client, "crawl", lambda: next(times))
        await token.header()
        service.down = 3
        assert (await token.header())[1] == b"Bearer token-2"
    assert len(pauses) >= 3
