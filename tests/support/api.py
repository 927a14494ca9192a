"""The stage `api` as a process of its own, on a real broker and a folder."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
from support.catalog import change, set_up
from support.ports import free_port
from support.trust import ENVIRON
from support.waiting import WAIT_SECONDS_MAX

from tidemill.configuration.catalog import MODEL, kind_of
from tidemill.configuration.settings import Settings
from tidemill.storage.owner import KEY as KEY_OF_OWNER

KEY = "sk-api-test-0123456789-of-the-tests"
STARTER = """
import resource, sys
files_max = int(sys.argv[1])
if files_max:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
from tidemill.api.app import main
from tidemill.configuration.settings import Settings
main(Settings.model_validate_json(sys.stdin.read()))
"""


def share_log(store: Path) -> None:
    """Make a store's folder for a log that has files of other tests, each with a store of its own."""
    if not store.exists():
        store.mkdir(parents=True)
        (store / KEY_OF_OWNER).touch()


class Api:
    """An api process, as a context manager; `url` ends in `/v1`. A `stop` and another `start` keep the data.

    Args:
        data: Its data folder.
        kafka: Its broker.
        files_max: Number of files it may open; 0 is the system's limit.
        settings: Other settings.
    """

    def __init__(self, data: Path, kafka: str, *, files_max: int = 0, **settings: Any) -> None:
        port = free_port()
        self.data = data
        self.files_max = files_max
        self.kafka = kafka
        self.settings = Settings(data=data, kafka=kafka, port=port, **settings)
        self.root = f"{self.settings.scheme}://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"
        self.process: subprocess.Popen[bytes] | None = None
        self._named: Iterable[str] = ()

    def __enter__(self) -> Self:
        # Several apis share the broker, and only the first one fills its catalog.
        if self.settings.models:
            self._named = asyncio.run(set_up(self.kafka, self.settings))
        if (store := urlsplit(self.settings.store_url)).scheme == "file":
            share_log(Path(store.path))
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        # Models of other tests may be on the same servers.
        if models := [key for key in self._named if kind_of(key) == MODEL]:
            asyncio.run(change(self.kafka, dict.fromkeys(models)))

    @property
    def log(self) -> str:
        """The output of the process."""
        return (self.data / "api.log").read_text()

    def start(self, **environ: str) -> None:
        """Start, and wait until it is ready; `environ` overrides the rest of its environment."""
        self.data.mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe()
        with (self.data / "api.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", STARTER, str(self.files_max)],
                env={
                    **os.environ,
                    **ENVIRON,
                    "TIDEMILL_API_KEY": KEY,
                    "TIDEMILL_NOTIFY_FD": str(writing),
                    **environ,
                },
                pass_fds=[writing],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        os.close(writing)
        self.process.stdin.write(self.settings.model_dump_json(exclude={"api_key"}, exclude_unset=True).encode())
        self.process.stdin.close()
        with os.fdopen(reading, "rb", 0) as pipe:
            # Words of progress come before.
            while said := select.select([pipe], [], [], WAIT_SECONDS_MAX)[0] and pipe.readline():
                if said.startswith(b"ready"):
                    break
        if not said:
            self.stop()
            raise AssertionError(self.log)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return its exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(number)
        status = self.process.wait(WAIT_SECONDS_MAX)
        self.process = None
        return status

    def client(self, key: str = KEY) -> httpx.Client:
        """A plain client with the key."""
        headers = {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=WAIT_SECONDS_MAX)
