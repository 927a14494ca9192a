"""The service and the mock backend of the bench when something goes wrong."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from support.waiting import until

from tidemill.bench import service as services
from tidemill.bench.cases import Case
from tidemill.bench.flow import Flow
from tidemill.bench.report import Figures
from tidemill.bench.run import CaseRun, CompareError, Files
from tidemill.bench.service import Mock, Service
from tidemill.configuration.settings import load

NEVER_READY = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: signal.pause()"
CASE = Case(name="x", lines=4, changes=((0.0, 7),))
GOOD = {"calls": 4, "ok": 4, "repeats": 0, "inflight": 2}


def test_the_service_has_no_settings_of_another_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither from variables nor from a file; it would join the consumer groups of that one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tidemill.toml").write_text('kafka = "production:9092"\n')
    monkeypatch.setenv("TIDEMILL_KAFKA", "production:9092")
    monkeypatch.setenv("TIDEMILL_CONFIG", str(tmp_path / "tidemill.toml"))
    monkeypatch.setenv("TIDEMILL_CACHE", "/cache")
    (folder := tmp_path / "bench").mkdir()
    service = Service(folder / "data", Mock("http://127.0.0.1:9"))
    found = service.environ()
    assert {name for name in found if name.startswith("TIDEMILL_")} == {
        "TIDEMILL_API_KEY",
        "TIDEMILL_CACHE",
        "TIDEMILL_MODELS",
    }
    command = service.command()
    config = Path(command[command.index("--config") + 1])
    monkeypatch.delenv("TIDEMILL_KAFKA")
    assert load(config).kafka is None


class Silent(Service):
    """A service that is never ready, and ignores SIGTERM."""

    def command(self) -> list[str]:
        """See `Service.command`."""
        return [sys.executable, "-I", "-S", "-c", NEVER_READY]


async def test_a_service_that_is_never_ready_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says why, and the process has ended before its folder is removed."""
    monkeypatch.setattr(services, "START_SECONDS_MAX", 0.5)
    monkeypatch.setattr(services, "STOP_SECONDS_MAX", 0.2)
    service = Silent(tmp_path / "data", Mock("http://127.0.0.1:9"))
    with pytest.raises(OSError, match=r"the service was not ready within"):
        await service.__aenter__()
    assert isinstance(service._process, subprocess.Popen)
    assert service._process.poll() is not None


class Drops:
    """A mock backend that spoils some answers to `/stats`."""

    def __init__(self) -> None:
        self.spoilt: list[object] = []
        self.asked: Counter[str] = Counter()

    async def answer(self, request: web.Request) -> web.Response:
        """Answer, or close the connection on `drop`."""
        self.asked[str(request.rel_url)] += 1
        found = self.spoilt.pop(0) if request.path == "/stats" and self.spoilt else GOOD
        if found == "drop":
            assert request.transport is not None
            request.transport.close()
        return web.json_response(found)


@pytest.fixture
async def backend() -> AsyncIterator[tuple[Drops, Mock]]:
    """The mock backend, and its client."""
    drops = Drops()
    app = web.Application()
    app.router.add_route("*", "/{path}", drops.answer)
    async with TestServer(app, host="127.0.0.1") as server:
        yield drops, Mock(str(server.make_url("/")))


async def test_a_dropped_connection_ends_no_watch(backend: tuple[Drops, Mock]) -> None:
    """Later samples count, and the capacity changes as the case says."""
    drops, mock = backend
    drops.spoilt = ["drop", "drop"]
    flow = Flow(CASE, mock)
    await flow.watch()
    assert flow.ended_at
    assert flow.mean == 2
    assert drops.asked["/set?capacity=7"] == 1


async def test_the_client_of_the_mock_raises_an_error_with_a_text(backend: tuple[Drops, Mock]) -> None:
    """For a dropped connection, and for an answer that is not JSON."""
    drops, mock = backend
    drops.spoilt = ["drop"] * 3
    with pytest.raises(OSError, match=r"the mock backend at http://127\.0\.0\.1:\d+: Server disconnected"):
        await mock.stats()


def watches() -> bool:
    """Whether a watch goes on."""
    running = (task.get_coro() for task in asyncio.all_tasks())
    return any(getattr(one, "__qualname__", "") == "Flow.watch" for one in running)


class Waits(CaseRun):
    """A case whose sides last until the watch has ended."""

    async def _product(self, _flow: Flow) -> Figures:
        await until(lambda: not watches(), "the end of the watch")
        return {"seconds": 1.0}

    async def _bare(self, _command: object, flow: Flow) -> Figures:
        return await self._product(flow)


@pytest.mark.parametrize("spoilt", [[], [{"no": "calls"}]])
async def test_a_side_whose_watch_failed_is_missing(
    backend: tuple[Drops, Mock], spoilt: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its figures would be wrong."""
    drops, mock = backend
    run = Waits(CASE, Path(), mock, None, None)  # type: ignore[arg-type]
    drops.spoilt = list(spoilt)
    found = await run.round(0, [])
    assert (found.product is None) == bool(spoilt)
    assert found.bare is not None
    assert ("x: product: left out" in capsys.readouterr().err) == bool(spoilt)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", json.dumps({"one": {"ratio": "high"}}).encode()])
def test_a_file_without_results_is_no_earlier_run(tmp_path: Path, content: bytes) -> None:
    """Before the cases run."""
    (file := tmp_path / "saved.json").write_bytes(content)
    with pytest.raises(CompareError, match=r"saved\.json has no results"):
        Files(compare=file).read()
