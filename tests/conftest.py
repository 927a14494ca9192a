"""What every test may ask for."""

import functools
import gc
import os
import resource
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from hypothesis import settings
from support import ports
from support.brokers import make_start_cache
from support.sharing import end_shared

pytest_plugins = ("support.fixtures",)

TESTS = Path(__file__).parent

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
ports.keep_apart()

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    # Else each of the thousand processes of a run compiles all that it imports.
    sys.dont_write_bytecode = False


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before the first broker starts, and after the last test of a folder."""
    end_shared(item.path.parent)
    if item.get_closest_marker("kafka") or item.get_closest_marker("e2e"):
        make_start_cache()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all tests without garbage collections, which find nothing there and took a fifth of the CPU time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Spare garbage collections the objects of all tests: they took a fifth of the CPU time of this process."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest file of one process: at the end the other processes would wait for it.

    Of a folder, files that share its installation run last: it takes CPU time from the others once it has started.
    """
    sharing = {item.path for item in items if _shares_stack(item)}

    def turn(item: pytest.Item) -> tuple[bool, str, bool]:
        path = item.path
        return path.name != "test_simulation.py", path.relative_to(TESTS).parts[0], path in sharing

    items.sort(key=turn)


def _shares_stack(item: pytest.Item) -> bool:
    """Whether it uses the installation that files of its folder share."""
    return "stack" in getattr(item, "fixturenames", ()) and not hasattr(getattr(item, "module", None), "stack")


class _Clients:
    """The HTTP clients, also of SDKs, that belong to the tests of a file, which need not close them."""

    def __init__(self) -> None:
        self._open: list[httpx.Client | httpx2.Client] = []
        self._others = 0
        """Fixtures of several files that are being set up."""
        for kind in (httpx.Client, httpx2.Client):
            self._note(kind)

    def _note(self, kind: Any) -> None:
        init = kind.__init__

        @functools.wraps(init)
        def noted(client: Any, *args: Any, **more: Any) -> None:
            init(client, *args, **more)
            if not self._others:
                self._open.append(client)

        kind.__init__ = noted

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
        """Tell the clients of a file from those of several."""
        is_other = fixturedef.scope not in {"function", "class", "module"}
        self._others += is_other
        try:
            return (yield)
        finally:
            self._others -= is_other

    def close(self) -> None:
        """Close them: a garbage collection might close their sockets first, with a warning."""
        while self._open:
            self._open.pop().close()


_clients = _Clients()


def pytest_configure(config: pytest.Config) -> None:
    """Have the clients noted."""
    config.pluginmanager.register(_clients)


def _process_state() -> dict[str, object]:
    """Everything of this process that one test can change for all later ones."""
    os.umask(umask := os.umask(0o022))
    return {
        "digits": sys.get_int_max_str_digits(),
        "recursion": sys.getrecursionlimit(),
        "switches": sys.getswitchinterval(),
        "folder": Path.cwd(),
        "path": list(sys.path),
        "umask": umask,
        "zone": time.tzname,
        "garbage": (gc.isenabled(), gc.get_threshold()),
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "limits": [resource.getrlimit(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)],
    }


@pytest.fixture(autouse=True, scope="module")
def leaks_are_found_where_they_are() -> Iterator[None]:
    """What a file leaves open or changed fails a test of this file, and not one that happens to run later."""
    before = _process_state()
    yield
    _clients.close()
    gc.collect()
    after = _process_state()
    assert {name: value for name, value in after.items() if value != before[name]} == {}


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where everything has to run, a skipped test is a failure."""
    end_shared()
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("tests were skipped, and CI is set", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
