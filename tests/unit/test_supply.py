"""All downloads are pinned: packages, tools of the build, jars and images, each with a hash."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from tidemill.local.embedded import jars

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-runtime.lock", "requirements-build.lock")
DIGEST = re.compile(r"[^@\s]+:[^@\s]+@sha256:[0-9a-f]{64}")
OWN_IMAGE = "tidemill:local"


def text(name):
    return (ROOT / name).read_text("utf-8")


@pytest.fixture(scope="module")
def sbom():
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "deploy" / "sbom.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_has_a_hash(sbom, name):
    """A lock without a hash for one package is refused."""
    pinned = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*])?==", text(name), re.MULTILINE)
    assert [package.name for package in sbom.packages(text(name))] == pinned


def test_a_package_without_a_hash_is_refused(sbom):
    """The list contains no entry without a hash."""
    with pytest.raises(ValueError, match="odd has no hash"):
        list(sbom.packages("even==1 \\\n    --hash=sha256:" + 64 * "0" + "\nodd==2\n"))


def test_the_build_uses_the_tools_that_are_locked():
    """pyproject.toml, and so each build, names the hatchling of requirements-build.lock."""
    (required,) = tomllib.loads(text("pyproject.toml"))["build-system"]["requires"]
    assert re.search(rf"^{re.escape(required)} ", text("requirements-build.lock"), re.MULTILINE)


def test_every_image_is_named_by_its_digest():
    """In the Dockerfile, compose.yaml and the manifests; our own image has none before it is built."""
    images = re.findall(r"^FROM (\S+)", text("Dockerfile"), re.MULTILINE)
    images += [service["image"] for service in yaml.safe_load(text("compose.yaml"))["services"].values()]
    for manifest in (ROOT / "deploy" / "kubernetes").glob("*.yaml"):
        images += re.findall(r"^\s*image: (\S+)", manifest.read_text("utf-8"), re.MULTILINE)
    assert [image for image in images if image != OWN_IMAGE and not DIGEST.fullmatch(image)] == []


def test_the_image_installs_nothing_unchecked():
    """Each `pip install` in the Dockerfile asks for hashes, but for the wheel that it built itself."""
    commands = re.findall(r"pip install ([^&\n]+)", text("Dockerfile"))
    assert commands
    for command in commands:
        assert "--require-hashes" in command or "/wheel/" in command, command


def test_the_list_names_what_is_installed(sbom):
    """Each package of the runtime lock, jar of the broker and library of the dashboard, with version and hash."""
    listed = {str(part.purl): {found.content for found in part.hashes} for part in sbom.bom().components}
    for jar in jars.pinned():
        assert listed.pop(f"pkg:maven/{jar.group}/{jar.artifact}@{jar.version}") == {jar.sha256}
    for library in json.loads(text("api/dashboard/vendor/manifest.json")):
        name = library["name"].replace("@", "%40")
        hashes = {file["sha256"] for file in library["files"].values()}
        assert listed.pop(f"pkg:npm/{name}@{library['version']}") == hashes
    locked = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*])?==([^\s;\\]+)", text(LOCKS[1]), re.MULTILINE)
    assert sorted(listed) == sorted(f"pkg:pypi/{name}@{version}" for name, version in locked)
    assert all(listed.values())
