"""A real browser: the machine's Chromium, or one from a package."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from support.waiting import WAIT_SECONDS_MAX

NAMES = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium", "fonts-dejavu-core")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
"""A test may run as root, and where /dev/shm is small."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium without a window; skips if it is missing and cannot be installed."""
    path = _found() or _installed()
    expect.set_options(timeout=1_000 * WAIT_SECONDS_MAX)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def _found() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def _installed() -> str:
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        pytest.skip("there is no Chromium, and it takes apt-get and root to install one")
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", "-qq", *command], capture_output=True, text=True, timeout=WAIT_SECONDS_MAX,
            env=environ, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"Chromium could not be installed: {done.stderr.strip()[-200:]}")
    path = _found()
    assert path is not None
    return path
