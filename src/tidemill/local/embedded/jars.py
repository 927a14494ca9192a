"""The jars of the embedded broker: downloads a pinned list into a cache and checks the hash of each file."""

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tidemill import ownership
from tidemill.retrying import pause_seconds
from tidemill.storage.atomic_file import replacing
from tidemill.tasks import run_all
from tidemill.terminal import say, stderr_console
from tidemill.wording import counted

if TYPE_CHECKING:
    import aiohttp

    from tidemill.client.progress import Display

LIST = "kafka-jars.txt"
DOWNLOADS_AT_ONCE = 6
ATTEMPTS_MAX = 4
RETRY_SECONDS = 0.5
CONNECT_SECONDS_MAX = 15
SILENCE_SECONDS_MAX = 30
CHUNK_BYTES = 64 * 1024
LEFTOVER_SECONDS_MAX = 3600
PART = ".part"
"""How the name of a partial download ends."""

Moved = Callable[[int], None]
"""Takes the number of bytes that were just downloaded; a negative number takes bytes back."""


class JarError(Exception):
    """A jar is not available; the text names it and the cause."""


@dataclass(frozen=True, kw_only=True)
class Jar:
    """One line of the list: Maven coordinates, SHA-256 in hex, size in bytes."""

    group: str
    artifact: str
    version: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        """File name, the same in the repository and in the cache."""
        return f"{self.artifact}-{self.version}.jar"

    @property
    def path(self) -> str:
        """Path below the address of the repository."""
        return f"{self.group.replace('.', '/')}/{self.artifact}/{self.version}/{self.name}"


def parse(text: str) -> tuple[Jar, ...]:
    """Read the list: `group:artifact:version sha256 size` a line."""
    jars = []
    for line in text.splitlines():
        coordinates, sha256, size = line.split()
        group, artifact, version = coordinates.split(":")
        jars.append(Jar(group=group, artifact=artifact, version=version, sha256=sha256, size=int(size)))
    return tuple(jars)


def pinned() -> tuple[Jar, ...]:
    """The list that this version of Tidemill was tested with."""
    return parse(resources.files("tidemill.local.embedded").joinpath(LIST).read_text("utf-8"))


def cache_folder() -> Path:
    """`$TIDEMILL_CACHE`, by default `~/.cache/tidemill`; it may not exist yet."""
    return Path(os.environ.get("TIDEMILL_CACHE") or Path.home() / ".cache" / "tidemill").absolute()


def repository_address() -> str:
    """`$TIDEMILL_MAVEN` (a mirror, for example), by default the public repository that jgo names."""
    if mirror := os.environ.get("TIDEMILL_MAVEN"):
        return mirror.rstrip("/")
    # jgo takes a third of a second to import, so only a download imports it.
    from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415

    return str(MAVEN_CENTRAL_URL)


async def fetch(jars: tuple[Jar, ...], cache: Path, *, repository: str | None = None) -> list[Path]:
    """Put every jar into the cache and return their paths, in the order of the list.

    A file in the cache that differs from the list, or that another user could have written, is downloaded again.
    Downloads run concurrently. Any number of processes may call this at the same time: a file appears whole or not
    at all.

    Raises:
        JarError: A download failed, a file differs from the list, or the cache is not writable.
    """
    folder = cache / "jars"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # This code is executed: another user who can write here could act as this one.
        for place in (cache, folder):
            ownership.keep_unchanged(place)
        # Hashing all of them takes a twentieth of a second at each start.
        if missing := [jar for jar in jars if not is_good(folder / jar.name, jar.sha256)]:
            remove_leftovers(folder)
            await _fetch_all(missing, folder, repository or repository_address())
    except OSError as error:
        raise JarError(unusable(folder, error)) from error
    return [folder / jar.name for jar in jars]


def is_good(file: Path, sha256: str) -> bool:
    """Whether a file has this hash, and no other user could have written it."""
    if not ownership.is_trusted(file):
        return False
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == sha256


def unusable(folder: Path, error: OSError) -> str:
    """The message that a folder of the cache cannot be used."""
    return f"cannot use the cache {folder}: {error}; TIDEMILL_CACHE names another folder"


def remove_leftovers(folder: Path) -> None:
    """Remove partial downloads of killed processes; a recent one may belong to a running process."""
    for part in folder.glob(f"*{PART}"):
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > LEFTOVER_SECONDS_MAX:
                if part.is_dir():
                    shutil.rmtree(part, ignore_errors=True)
                else:
                    part.unlink()


async def _fetch_all(missing: list[Jar], folder: Path, repository: str) -> None:
    # Slow to import, and only needed when a jar is missing.
    import aiohttp  # noqa: PLC0415

    from tidemill.client.progress import display  # noqa: PLC0415

    limit = asyncio.Semaphore(DOWNLOADS_AT_ONCE)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS_MAX, sock_read=SILENCE_SECONDS_MAX)

    async def one(jar: Jar, client: aiohttp.ClientSession, progress: "Display") -> None:
        async with limit:
            await _fetch_one(jar, folder / jar.name, f"{repository}/{jar.path}", client, progress.moved)

    total = sum(jar.size for jar in missing)
    say(f"Downloading Apache Kafka ({counted(len(missing), 'file')}, {total / 1e6:.0f} MB)", err=True)
    with display(stderr_console()) as progress:
        progress.transfer("Apache Kafka", total)
        # trust_env: use the proxy that the environment names.
        async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as client:
            await run_all(one(jar, client, progress) for jar in missing)


async def _fetch_one(jar: Jar, target: Path, url: str, client: "aiohttp.ClientSession", moved: Moved) -> None:
    from aiohttp import ClientError  # noqa: PLC0415  as above

    for attempt in range(1, ATTEMPTS_MAX + 1):
        try:
            # A file that others may write would be downloaded again.
            with replacing(target, mode=0o600) as file:
                await _download(jar, url, client, file, moved)
        # Other OSErrors come from the cache; the caller explains them.
        except (JarError, ClientError, TimeoutError) as error:
            if attempt == ATTEMPTS_MAX:
                cause = str(error) or "it did not answer in time"
                raise JarError(f"cannot download {jar.name} from {url}: {cause}") from error
            await asyncio.sleep(pause_seconds(attempt - 1, first=RETRY_SECONDS))
        else:
            return


async def _download(jar: Jar, url: str, client: "aiohttp.ClientSession", file: IO[bytes], moved: Moved) -> None:
    digest = hashlib.sha256()
    size = 0
    try:
        async with client.get(url) as answer:
            _check(answer.ok, f"the repository answered {answer.status}")
            async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                size += len(chunk)
                _check(size <= jar.size, f"it has more than the {jar.size} bytes of the list")
                digest.update(chunk)
                file.write(chunk)
                moved(len(chunk))
        _check(size == jar.size, f"only {size} of {jar.size} bytes arrived")
        _check(
            digest.hexdigest() == jar.sha256,
            f"its SHA-256 is {digest.hexdigest()}, the list says {jar.sha256}",
        )
    except BaseException:
        moved(-size)
        raise


def _check(good: bool, fault: str) -> None:
    if not good:
        raise JarError(fault)
