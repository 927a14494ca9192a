"""The token of a production that lasts longer than one."""

from support.service import KEY, Service

from tidemill.client.production import Token
from tidemill.client.service import Client


async def test_a_token_is_made_anew_at_half_of_its_time():
    """By the clock that nobody steps: how long it is good counts, not the hour that another machine says."""
    now = 0.0
    async with Service() as service, Client(service.url, KEY) as client:
        token = Token(client, "crawl", lambda: now)
        seen = []
        for now in (0.0, 49.0, 50.0, 99.0, 100.0):  # noqa: B007  the clock reads it
            seen.append((await token.header())[1])
    assert seen == [b"Bearer token-1", b"Bearer token-1", b"Bearer token-2", b"Bearer token-2", b"Bearer token-3"]
