"""A real browser: Chromium without its windows, from a package, or the machine's Chromium."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from support.waiting import WAIT_SECONDS_MAX

SHELL = "chromium-headless-shell"
"""The same engine without the parts that draw windows; it takes half the CPU time."""
NAMES = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = (SHELL, "fonts-dejavu-core")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
"""A test may run as root, and where /dev/shm is small."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium without a window; skips if it is missing and cannot be installed."""
    path = shutil.which(SHELL) or _installed()
    expect.set_options(timeout=1_000 * WAIT_SECONDS_MAX)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def _installed() -> str:
    """The shell, once it is installed, or another Chromium of the machine."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        fault = "it takes apt-get and root to install one"
    else:
        fault = _install()
        if path := shutil.which(SHELL):
            return path
    if path := next((path for name in NAMES if (path := shutil.which(name))), None):
        return path
    pytest.skip(f"there is no Chromium: {fault}")


def _install() -> str:
    """Install the shell; returns why it could not be, or an empty text."""
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", "-qq", *command], capture_output=True, text=True, timeout=WAIT_SECONDS_MAX,
            env=environ, check=False,
        )  # fmt: skip
        if done.returncode:
            return done.stderr.strip()[-200:]
    return ""
