"""Stages as processes of their own, as a cluster has them: started, killed, and started again when they end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from support.stack import KEPT, KEY
from support.trust import ENVIRON
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.kafka.freeze_guard import FROZEN
from tidemill.local import parent_death
from tidemill.local.embedded import kraft

LOG_BYTES_SHOWN = 3_000


@dataclass(kw_only=True)
class Member:
    """One process of a stage."""

    stage: str
    process: subprocess.Popen[bytes]
    log: Path
    port: int
    """Port of the API, which other stages do not have."""
    package: Path | None = None
    """Folder of its code; None is this checkout."""
    environ: Mapping[str, str]
    """Its own settings, as variables."""
    wanted: bool = True
    """Whether it should run; `tend` starts it again if it ends."""

    @property
    def runs(self) -> bool:
        """Whether the process is alive."""
        return self.process.poll() is None


class Fleet:
    """The processes of all stages; a context manager that ends them.

    They share one data folder, in which each has its own folder. Like an orchestrator, `tend` restarts processes
    that ended by themselves.

    Args:
        folder: Folder of logs and state.
        environ: Settings of all processes, as variables.
        models: The table `models` of the configuration.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str], models: dict[str, dict[str, Any]]) -> None:
        self._folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TIDEMILL_") or k in KEPT}
        self._environ = {
            **kept,
            "TIDEMILL_API_KEY": KEY,
            **ENVIRON,
            "TIDEMILL_DATA": str(folder / "data"),
            "TIDEMILL_MODELS": json.dumps(models),
            **environ,
        }
        self.members: list[Member] = []
        self.restarts = 0
        """Number of processes that ended by themselves, without those that the machine had frozen for too long."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            if member.runs:
                member.process.kill()
                member.process.wait()

    def start(
        self,
        stage: str,
        *arguments: str,
        package: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Member:
        """Start one more process of a stage, without waiting for it.

        Args:
            stage: The stage.
            arguments: Arguments of its command.
            package: The folder with the package `tidemill`; by default that of this checkout.
            environ: Its own settings, as variables.
        """
        environ = environ or {}
        port = int(environ.get("TIDEMILL_PORT") or kraft.free_port())
        log = self._folder / f"{stage}-{len(self.members)}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                parent_death.command([sys.executable, "-m", "tidemill", stage, *arguments]),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**self._environ, "TIDEMILL_PORT": str(port), **self._path(package), **environ},
            )  # fmt: skip
        member = Member(stage=stage, process=process, log=log, port=port, package=package, environ=environ)
        self.members.append(member)
        return member

    def url(self, member: Member) -> str:
        """The address of an api process; waits until it can serve."""

        def answers() -> bool:
            self.tend()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{kraft.LOOPBACK}:{member.port}/readyz", timeout=5).close()
                return True
            return False

        wait_until(answers, f"readiness of {member.stage}")
        return f"http://{kraft.LOOPBACK}:{member.port}/v1"

    def kill(self, member: Member) -> None:
        """Kill a process, like a power cut; the next `tend` starts it again."""
        member.process.kill()
        member.process.wait()
        self.restarts -= 1

    def stop(self, member: Member) -> int:
        """Stop a process for good, as an orchestrator would; returns the exit code."""
        member.wanted = False
        member.process.send_signal(signal.SIGTERM)
        return member.process.wait(WAIT_SECONDS_MAX)

    def tend(self) -> None:
        """Restart processes that ended by themselves, on other ports."""
        for member in self.members:
            if member.wanted and not member.runs:
                member.wanted = False
                self.restarts += member.process.returncode != FROZEN
                self.start(member.stage, package=member.package, environ=member.environ)

    def tails(self) -> str:
        """The ends of all logs."""
        parts = [f"--- {member.log.name}\n{_tail(member.log)}" for member in self.members]
        return "\n".join(parts)

    def _path(self, package: Path | None) -> dict[str, str]:
        paths = [str(package) if package else "", self._environ.get("PYTHONPATH", "")]
        return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _tail(log: Path) -> str:
    return log.read_bytes()[-LOG_BYTES_SHOWN:].decode("utf-8", "replace")
