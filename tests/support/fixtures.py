"""What tests of the whole service share."""

from collections.abc import Iterator

import pytest
from support.backend import Backend
from support.stack import Stack


@pytest.fixture(scope="session")
def inference() -> Iterator[Backend]:
    """One inference server for all tests; use `backend`, which is swept before each."""
    with Backend() as backend:
        yield backend


@pytest.fixture
def backend(inference: Backend) -> Iterator[Backend]:
    """An inference server that has counted nothing yet and answers everything well."""
    inference.reset()
    yield inference
    inference.reset()


@pytest.fixture(scope="session")
def stack(inference: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Tidemill as `tidemill up` starts it, with the models `chat` and `embed` on the test's backend.

    Besides a day a batch may take four seconds, so that one can be seen to expire.
    """
    data = tmp_path_factory.mktemp("stack")
    environ = {"TIDEMILL_WINDOWS": '["24h", "4s"]'}
    with Stack(data, inference.models("chat", "embed"), environ) as stack:
        yield stack
