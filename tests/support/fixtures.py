"""Fixtures of tests of the whole service."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support import openid
from support.backend import Backend
from support.batches import WINDOWS
from support.brokers import any_kafka
from support.ports import free_port
from support.sharing import shared
from support.stack import Stack

from tidemill.schemas.endpoints import DEFAULTS


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the pauses of tasks, in seconds, and skip them."""
    made: list[float] = []
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        made.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", pause)
    return made


@pytest.fixture
def umask() -> Iterator[None]:
    """Allow `up` to change the umask of the test's process."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def inference() -> Iterator[Backend]:
    """One inference server for all tests; use `backend`, which resets it before each."""
    with Backend() as backend:
        yield backend


@pytest.fixture
def backend(inference: Backend) -> Iterator[Backend]:
    """An inference server with reset counters that answers every call well."""
    inference.reset()
    yield inference
    inference.reset()


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, inference: Backend) -> Stack:
    """Tidemill as `tidemill up` starts it, with the models `chat` and `embed` on the test's backend.

    `chat` also has `/v1/messages`. All modules of a folder share it.

    Besides a day a batch may take some seconds, so that one can be seen to expire. It names an OpenID
    provider, which runs only in the tests that start it.
    """

    @contextmanager
    def start() -> Iterator[Stack]:
        environ = {"TIDEMILL_WINDOWS": WINDOWS}
        with TemporaryDirectory(prefix="tidemill-stack-") as folder:
            environ["TIDEMILL_OPENID"] = openid.settings(Path(folder), free_port())
            # Let other users reach the data folder; pytest's own folders would keep them out.
            Path(folder).chmod(0o755)
            models = inference.models("chat", "embed")
            models["chat"]["endpoints"] = [*DEFAULTS, "/v1/messages"]
            with Stack(Path(folder) / "data", models, environ) as stack:
                yield stack

    return shared(request.path.parent, "stack", start)


@pytest.fixture(scope="module")
def kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`host:port` of a real Kafka, one for a folder's modules; tests keep apart by the names of their topics."""
    return shared(request.path.parent, "kafka", lambda: any_kafka(tmp_path_factory.mktemp("kafka")))
