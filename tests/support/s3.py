"""A real S3 server for a test session: SeaweedFS, where its wheel is installed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.waiting import WAIT_SECONDS_MAX, one_at_a_time, wait_until

BINARY = "TIDEMILL_TEST_WEED"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret"}
GRPC_OFFSET = 10_000
"""The server opens a second port this much above each of its ports."""


def server_program() -> str | None:
    """Path of the server; None if it is not installed."""
    beside = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    return os.environ.get(BINARY) or shutil.which("weed", path=beside)


@contextmanager
def s3_server(program: str, folder: Path) -> Iterator[dict[str, str]]:
    """Run a server during the block, and give the variables that lead to it."""
    # The server looks for free ports before it listens: two that start together could choose the same one.
    with one_at_a_time("s3"):
        process, url = _started(program, folder)
    try:
        yield {**CREDENTIALS, "AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
    finally:
        _stop(process)


def _started(program: str, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A server that answers, and its URL."""
    port = next(
        port for port in range(8400 + os.getpid() % 500, 9400) if is_free(port) and is_free(port + GRPC_OFFSET)
    )
    command = [
        program, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
        "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.port={port}",
    ]  # fmt: skip
    environ = {**os.environ, **CREDENTIALS, "GOMEMLIMIT": "256MiB"}
    with (folder / "server.log").open("wb") as output:
        process = subprocess.Popen(command, env=environ, cwd=folder, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
        try:
            urllib.request.urlopen(url + "/healthz", timeout=1).close()
        except OSError:
            return False
        return True

    try:
        wait_until(answers, "the S3 server")
    except BaseException:
        _stop(process)
        raise
    return process, url


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(WAIT_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def is_free(port: int) -> bool:
    """Whether the port has no listener."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
