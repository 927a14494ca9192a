"""Fixtures for tests of the client: a stand-in of the service, and what a command needs to use it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.service import KEY, Service, request_lines

from tidemill.client.http.client import Client
from tidemill.terminal import Console


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """The stand-in of the service."""
    async with Service() as service:
        yield service


@pytest.fixture(autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the journals of runs to stdout in a folder of the test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
async def client(service: Service) -> AsyncIterator[Client]:
    """A client of it."""
    async with Client(service.url, KEY) as client:
        yield client


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An input of three lines."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(request_lines(3))
    return path


@pytest.fixture
def console() -> Console:
    """A console that records its output."""
    return Console(record=True, width=200, markup=False, highlight=False, soft_wrap=True)
