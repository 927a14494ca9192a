"""docs/reference/api/errors.md lists every code that the service gives, and no other."""

import re
from pathlib import Path

from tidemill.processors.failures import FailureKind
from tidemill.schemas.jsonl import line

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "reference" / "api" / "errors.md"
FOLDERS = ("api", "ingest", "processors", "results", "schemas")
GIVEN = re.compile(
    r"""\bcode=(?:"(?P<literal>[a-z_]+)"|(?P<constant>[A-Z_]+)\b)|\b(?:LineFault|wrong)\(\s*"(?P<fault>[a-z_]+)\""""
    r"""|\bcode, \w+ = "(?P<chosen>[a-z_]+)\""""
)
NO_CODES = {FailureKind.STORE, FailureKind.KEY, "other"}
"""Without the store or a key, lines wait. `other` names the rest of a report's groups."""


def given() -> set[str]:
    """The codes in the source, and those of constants."""
    found = {*FailureKind, line.EXPIRED[0], line.CANCELLED[0], *line.REFUSALS}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            for place in GIVEN.finditer(text):
                if (name := place["constant"]) is not None:
                    found.add(re.search(rf'^{name}(?:: Final)? = "(.*)"$', text, re.MULTILINE)[1])
                else:
                    found.add(place["literal"] or place["fault"] or place["chosen"])
    return {str(code) for code in found - NO_CODES}


def listed() -> list[str]:
    """The codes in the tables of the page: in the column of that name."""
    codes, column = [], None
    for row in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        if not cells:
            column = None
        elif column is None:
            column = next(place for place, cell in enumerate(cells) if "code" in cell)
        else:
            codes += re.findall("`([a-z_]+)`", cells[column])
    return codes


def test_every_code_is_listed():
    """A client can look each of them up."""
    assert len(given()) >= 80
    assert sorted(given() - set(listed())) == []
    assert sorted(set(listed()) - given()) == []
