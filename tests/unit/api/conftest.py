"""The dependencies and the client that most tests of the API use; a module may have others."""

import pytest
from support.dependencies import ADMIN, ManualClock, client_of, open_dependencies


@pytest.fixture
def clock():
    """The clock of the dependencies, at `NOW`."""
    return ManualClock()


@pytest.fixture
async def deps(tmp_path, clock):
    """New dependencies."""
    async with open_dependencies(tmp_path, clock) as deps:
        yield deps


@pytest.fixture
async def client(deps):
    """A client of the app, as the project `p`."""
    async with client_of(deps) as client:
        yield client


@pytest.fixture
async def operator(deps):
    """A client with the key of the settings."""
    async with client_of(deps, ADMIN) as client:
        yield client
