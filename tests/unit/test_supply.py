"""All downloads are pinned: packages, tools of the build, jars and images, each with a hash."""

import ast
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import measures
import pytest
import yaml
from support.loading import loaded

from tidemill.local.embedded import jars

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-runtime.lock", "requirements-build.lock")
DIGEST = re.compile(r"[^@\s]+:[^@\s]+@sha256:[0-9a-f]{64}")
OWN_IMAGE = "tidemill:local"
STAGES = ("api", "ingest", "processors", "results", "webhooks")


def text(name):
    return (ROOT / name).read_text("utf-8")


@pytest.fixture(scope="module")
def sbom():
    return loaded(ROOT / "deploy" / "sbom.py")


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


def test_the_image_has_each_library_of_the_stages():
    """Also those that a stage imports late, or without which it refuses a request."""
    imports = measures.imports(measures.modules(ROOT))
    found = {module for module in imports if module.path.relative_to(ROOT).parts[0] in STAGES}
    while more := set().union(*(imports[module] for module in found)) - found:
        found |= more
    wanted = {library for module in found for library in libraries(module.tree)} - sys.stdlib_module_names
    of_library = packages_distributions()
    missing = {
        library
        for library in wanted - {"tidemill"}
        if not any(locked(distribution) for distribution in of_library[library])
    }
    assert "pyarrow" in wanted
    assert missing == set()


def libraries(tree):
    """What a module imports, and what it asks `find_spec` for."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                yield from (alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module)):
                yield module.partition(".")[0]
            case ast.Call(args=[ast.Constant(value=str(name))]) if "find_spec" in ast.unparse(node.func):
                yield name


def locked(distribution):
    """Whether the lock of the image has a package."""
    name = re.sub(r"[-_.]+", "-", distribution).lower()
    return re.search(rf"^{re.escape(name)}(\[[^]]*])?==", text("requirements-runtime.lock"), re.MULTILINE)


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
