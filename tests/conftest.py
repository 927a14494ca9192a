"""What every test may ask for."""

import gc
import os
import sys

import pytest
from hypothesis import settings
from support import ports
from support.brokers import make_start_cache
from support.sharing import end_shared

pytest_plugins = ("support.fixtures",)

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


def pytest_collection_finish() -> None:
    """Spare garbage collections the objects of all tests: they took a fifth of the CPU time of this process."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where everything has to run, a skipped test is a failure."""
    end_shared()
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("tests were skipped, and CI is set", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
