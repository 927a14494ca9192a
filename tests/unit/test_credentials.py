"""Every reader of secrets: what editors, shells and mounted Secrets add is no part of a secret."""

import asyncio

import pytest
from support.backend import Backend

from tidemill.client.errors import UsageError
from tidemill.client.target import find
from tidemill.configuration.servers import Server
from tidemill.processors.backends.server_settings import Target
from tidemill.runtime import server_probe

WORD = "a-secret_of+40/characters=xQ7"
SAME = [WORD, f"{WORD}\n", f"{WORD}\r\n", f"\ufeff{WORD}", f" {WORD}\t", f"\ufeff {WORD} \r\n\r\n"]
NO_KEY = [
    ("two words", "has a space or a character that is not ASCII"),
    ("clé", "has a space or a character that is not ASCII"),
    ("日本", "has a space or a character that is not ASCII"),
    ("one\ntwo", "has a line break or another invisible character"),
    ("one\u200btwo", "has a line break or another invisible character"),
    ("\udcff", "has a line break or another invisible character"),
    (" \n", "is empty"),
    ("\ufeff", "is empty"),
]


def server(url="http://a/v1"):
    return Server(url=url, api_key_env="A_KEY")


@pytest.mark.parametrize("given", SAME)
def test_a_key_is_sent_without_what_surrounds_it(given, monkeypatch):
    """To a server by processors and by the probe, and to the service by commands."""
    monkeypatch.setenv("A_KEY", given)
    with Backend() as backend:
        backend.key = WORD
        one = server(backend.url)
        assert one.lack is None
        assert Target(one).headers["authorization"] == f"Bearer {WORD}"
        assert isinstance(asyncio.run(server_probe.models(one)), list)
        for option, environ in ((given, {}), (None, {"TIDEMILL_API_KEY": given})):
            found = find(base_url=backend.url, api_key=option, data=None, environ=environ)
            assert found.api_key == WORD


@pytest.mark.parametrize(("given", "said"), NO_KEY)
def test_a_text_that_cannot_be_a_key_is_not_sent(given, said, monkeypatch):
    """The fault names the variable and does not quote it, for every reader of the fault."""
    monkeypatch.setenv("A_KEY", given)
    assert server().lack.startswith(f"the variable A_KEY {said}")
    assert "authorization" not in Target(server()).headers
    found = asyncio.run(server_probe.models(server()))
    assert found == server_probe.NoModels(server().lack)
    with pytest.raises(UsageError, match=f"^the API key {said}.*TIDEMILL_API_KEY") as refused:
        find(base_url="http://a/v1", api_key=given, data=None, environ={})
    assert given.strip("\ufeff \n") == "" or given not in f"{server().lack}{refused.value}"


def test_a_process_without_the_key_may_ask_the_server(monkeypatch):
    """Only processors have it, so its absence is a fault of theirs alone."""
    monkeypatch.delenv("A_KEY", raising=False)
    assert server().lack == "the variable A_KEY is not set"
    assert server().fault is None
