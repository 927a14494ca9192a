# ruff: noqa: INP001 - a script
"""Checks that a release is whole, and prints its notes: `python deploy/release.py v1.2.3`."""

import re
import sys
from pathlib import Path
from typing import Final

import yaml

from tidemill import __version__

ROOT: Final = Path(__file__).resolve().parents[1]
HEADING: Final = r"## \[{version}\] - \d{{4}}-\d\d-\d\d\n(?P<notes>.*?)(?=^## |\Z)"


def notes(tag: str, changelog: str, chart: str) -> str:
    """The section of the changelog for a tag.

    Raises:
        ValueError: The package, the chart or the changelog has another version, or none; the text says which.
    """
    if tag != f"v{__version__}":
        raise ValueError(f"the tag is {tag}, and src/tidemill/__init__.py has {__version__}")
    versions = yaml.safe_load(chart)
    if (versions["version"], versions["appVersion"]) != (__version__, __version__):
        raise ValueError(f"the chart has {versions['version']} and {versions['appVersion']}, not {__version__}")
    found = re.search(HEADING.format(version=re.escape(__version__)), changelog, re.MULTILINE | re.DOTALL)
    if found is None or not found["notes"].strip():
        raise ValueError(f"CHANGELOG.md has no section `## [{__version__}] - YYYY-MM-DD` with changes")
    if re.search(r"^## \[Unreleased\]\s*^[^#\s]|^## \[Unreleased\]\s*^### ", changelog, re.MULTILINE):
        raise ValueError("CHANGELOG.md still has changes under [Unreleased]; move them to the release")
    return found["notes"].strip() + "\n"


def main() -> int:
    """Print the notes; the exit code 1 says that the release is not whole."""
    try:
        text = notes(
            sys.argv[1],
            (ROOT / "CHANGELOG.md").read_text("utf-8"),
            (ROOT / "deploy" / "helm" / "tidemill" / "Chart.yaml").read_text("utf-8"),
        )
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
