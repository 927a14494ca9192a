"""The dependencies and the client that most tests of the API use; a module may have others."""

import pytest
from support.dependencies import client_of, open_dependencies


@pytest.fixture
async def deps(tmp_path):
    """New dependencies."""
    async with open_dependencies(tmp_path) as deps:
        yield deps


@pytest.fixture
async def client(deps):
    """A client of the app, as the project `p`."""
    async with client_of(deps) as client:
        yield client
