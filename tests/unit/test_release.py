"""A release is whole: deploy/release.py refuses a tag that package, chart or changelog do not match."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.loading import loaded

from tidemill import __version__

ROOT = Path(__file__).resolve().parents[2]
TAG = f"v{__version__}"
CHART = f"version: {__version__}\nappVersion: '{__version__}'\n"
CHANGELOG = f"""# Changelog

## [Unreleased]

## [{__version__}] - 2026-12-01

### Added

- Mills.

## [0.0.9] - 2026-11-01

- Older.
"""
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))


@pytest.fixture(scope="module")
def release():
    return loaded(ROOT / "deploy" / "release.py")


def test_the_notes_are_the_section_of_the_changelog(release):
    """Without its heading, and without older sections."""
    assert release.notes(TAG, CHANGELOG, CHART) == "### Added\n\n- Mills.\n"


@pytest.mark.parametrize(
    ("tag", "changelog", "chart", "fault"),
    [
        ("v9.9.9", CHANGELOG, CHART, "the tag is v9.9.9"),
        (TAG, CHANGELOG, "version: 9.9.9\nappVersion: '9.9.9'\n", "the chart has 9.9.9"),
        (TAG, CHANGELOG.replace(" - 2026-12-01", ""), CHART, "has no section"),
        (TAG, CHANGELOG.replace("### Added\n\n- Mills.\n", ""), CHART, "has no section"),
        (
            TAG,
            CHANGELOG.replace("[Unreleased]\n", "[Unreleased]\n\n### Fixed\n\n- x\n"),
            CHART,
            "still has changes",
        ),
    ],
)
def test_a_release_that_is_not_whole_is_refused(release, tag, changelog, chart, fault):
    """With what is missing."""
    with pytest.raises(ValueError, match=fault):
        release.notes(tag, changelog, chart)


def test_actions_are_named_by_their_commit():
    """A tag of an action can move."""
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(file.read_text("utf-8"))["jobs"].values():
            for step in job["steps"]:
                assert "@" not in step.get("uses", "") or len(step["uses"].split("@")[1]) == 40, step


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_the_units(unit, tmp_path):
    """It knows every setting; the program is one that is here."""
    text = unit.read_text("utf-8").replace("/opt/tidemill/bin/tidemill", sys.executable)
    (tmp_path / unit.name.replace("@", "@api")).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *tmp_path.iterdir()], capture_output=True, text=True, check=False
    )
    own = [line for line in done.stderr.splitlines() if unit.stem.split("@")[0] in line]
    assert own == [], done.stderr


def test_units_run_commands_of_the_program():
    """As the docs name them: everything, or one stage."""
    assert [unit.name for unit in UNITS] == ["tidemill.service", "tidemill@.service"]
    whole, stage = (unit.read_text("utf-8") for unit in UNITS)
    assert "ExecStart=/opt/tidemill/bin/tidemill up --data /var/lib/tidemill --config" in whole
    assert "ExecStart=/opt/tidemill/bin/tidemill %i\n" in stage
