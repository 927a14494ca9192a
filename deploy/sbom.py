# ruff: noqa: INP001 - a script
"""Lists the packages of an installation as a CycloneDX document: `python deploy/sbom.py OUT`.

The Python packages are those of requirements-runtime.lock, which the image installs, the jars those of the
embedded broker, and the JavaScript libraries those of the dashboard: these lists name versions and SHA-256. Only
licences of Python packages come from the metadata of installed packages.
"""

import json
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from tidemill import __version__
from tidemill.local.embedded import jars

ROOT = Path(__file__).resolve().parents[1]
RUNTIME_LOCK = ROOT / "requirements-runtime.lock"
VENDORED = ROOT / "api" / "dashboard" / "vendor" / "manifest.json"
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def bom() -> Bom:
    """The document: Tidemill, and every package, jar and library with its version and hashes."""
    document = Bom(
        components=[*packages(RUNTIME_LOCK.read_text("utf-8")), *map(_jar, jars.pinned()), *libraries()]
    )
    document.metadata.component = Component(
        name="tidemill", version=__version__, type=ComponentType.APPLICATION, bom_ref=f"tidemill@{__version__}"
    )
    document.register_dependency(document.metadata.component, document.components)
    return document


def packages(lock: str) -> Iterator[Component]:
    """The packages of a lock: `name==version` lines, each followed by its hashes.

    Raises:
        ValueError: One has no hash.
    """
    for entry in re.split(r"\n(?=[A-Za-z0-9])", lock):
        if (pinned := _PINNED.match(entry)) is None:
            continue
        name, version = pinned.groups()
        if not (hashes := _HASH.findall(entry)):
            raise ValueError(f"{name} has no hash in the lock")
        yield _component("pypi", name, version, hashes, licence=_licence(name))


def libraries() -> Iterator[Component]:
    """The JavaScript libraries of the dashboard, with the hashes of their vendored files."""
    for found in json.loads(VENDORED.read_text("utf-8")):
        scope, _, name = found["name"].rpartition("/")
        hashes = [file["sha256"] for file in found["files"].values()]
        yield _component("npm", name, found["version"], hashes, group=scope or None, licence=found["licence"])


def _jar(jar: jars.Jar) -> Component:
    return _component("maven", jar.artifact, jar.version, [jar.sha256], group=jar.group)


def _component(
    kind: str, name: str, version: str, hashes: list[str], *, group: str | None = None, licence: str | None = None
) -> Component:
    purl = PackageURL(kind, group, name, version)
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        group=group,
        version=version,
        purl=purl,
        bom_ref=str(purl),
        licenses=[LicenseFactory().make_from_string(licence)] if licence else [],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=content) for content in hashes],
    )


def _licence(name: str) -> str | None:
    """The licence that an installed package declares, a long text left out."""
    try:
        said = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    found = said.get("License-Expression") or said.get("License")
    return found if found and "\n" not in found else None


def main() -> None:
    """Write the document to the path that the first argument names."""
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(JsonV1Dot6(bom()).output_as_string(indent=1), "utf-8")
    sys.stderr.write(f"{out}\n")


if __name__ == "__main__":
    main()
