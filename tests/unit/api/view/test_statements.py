"""The SQL of the view: a statement that goes from one object to another stays within a project."""

import ast
import re
from pathlib import Path

import pytest

from tidemill.api.requests import filters
from tidemill.api.view import view

FOLDER = Path(view.__file__).parent
SOURCES = [*sorted(FOLDER.glob("*.py")), Path(filters.__file__)]
OBJECTS = re.compile(
    r"\b(?:FROM|JOIN|INTO|UPDATE)\s+(batches|files|uploads|parts|reruns|labels|erasures|claims)\b"
)
WITHOUT_PROJECT = {
    "SELECT id, expires_at FROM uploads": "a part is added only to an upload of the project",
    "DELETE FROM orphans": "the operator's search for objects without a record, by the keys of the store",
    "SELECT 1 FROM files WHERE key = ?1": "the same",
    "INSERT OR IGNORE INTO erasures": "both rows are of the batch with this id, and an id is of one project",
}
"""Statements that need no project, by how they begin, with the reason."""


def texts(path: Path) -> list[str]:
    """The SQL of a module, with the constants of the module that it names."""
    tree = ast.parse(path.read_text("utf-8"))
    constants = {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def text(node: ast.expr) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text, node.values))
        if isinstance(node, ast.FormattedValue):
            return str(constants.get(node.value.id, "")) if isinstance(node.value, ast.Name) else ""
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""

    inner = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found = (text(node) for node in ast.walk(tree) if isinstance(node, ast.expr) and node not in inner)
    return [one for one in found if OBJECTS.search(one) and not one.lstrip().startswith("CREATE")]


def tables(text: str) -> set[str]:
    """The tables that a statement names."""
    return set(OBJECTS.findall(text))


CROSSING = [text for path in SOURCES for text in texts(path) if len(tables(text)) > 1 or "input_file_id =" in text]


def test_statements_are_found():
    """Those of several tables, also over a constant."""
    assert len(CROSSING) >= 8
    assert any(
        text.startswith("SELECT id, over, 0 FROM batches WHERE input_file_id = ?1 AND project")
        for text in CROSSING
    )


@pytest.mark.parametrize("text", CROSSING, ids=lambda text: text[:40])
def test_a_statement_about_two_objects_names_the_project(text):
    """The id of an object may come from a client of another project: a batch may name any input."""
    if not any(text.startswith(known) for known in WITHOUT_PROJECT):
        assert re.search(r"\bproject\b", text), text


def test_each_exception_is_needed():
    """It is a statement of the view, without the project."""
    for known in WITHOUT_PROJECT:
        assert any(text.startswith(known) for text in CROSSING), known
