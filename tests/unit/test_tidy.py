"""The house in order: what a reviewer would have to say again and again is said here."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("api", "ingest", "processors", "results", "schemas", "src/tidemill")
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 50
BLOB_BYTES_MAX = 600_000
DOORS = {
    "aiokafka": {"src/tidemill/kafka", "src/tidemill/local/embedded/broker.py", "kafka.py"},
    "faust": {"src/tidemill/faust"},
    "aioboto3": {"src/tidemill/storage/s3.py"},
    "aiohttp": {
        "src/tidemill/storage/s3.py",
        "processors/http/client.py",
        "src/tidemill/client/http",
        "src/tidemill/ops/server_probe.py",
        "src/tidemill/bench/service.py",
        "src/tidemill/local",
    },
    "httptools": {"processors/http/connection.py"},
    "sqlite3": {"sqlite.py"},
    "fastapi": None,
}
"""Which file or folder may import what talks to the outside; fastapi is the api's own."""
MARKERS = re.compile(rf"\b({'|'.join(('TO' + 'DO', 'FIX' + 'ME', 'XX' + 'X', 'HA' + 'CK'))})\b")
"""In pieces, so that this file does not hold what it looks for."""


def tracked(*patterns: str) -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, check=True)
    paths = (ROOT / name for name in listing.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
HARNESSES = [path for part in ("support", "chaos") for path in sorted((ROOT / "tests" / part).rglob("*.py"))]
TREES = {path: ast.parse(path.read_text("utf-8")) for path in (*SOURCES, *HARNESSES)}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*SOURCES, *HARNESSES], ids=name)
def test_modules_and_functions_are_short(path):
    """A module is at most 400 lines, a function at most 50 without its docstring."""
    assert len(path.read_text("utf-8").splitlines()) <= MODULE_LINES_MAX
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = node.end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_only_doors_import_client_libraries(path):
    """I/O is visible in the name of the file."""
    for node in ast.walk(TREES[path]):
        match node:
            case ast.Import():
                modules = [alias.name for alias in node.names]
            case ast.ImportFrom(module=str(module)):
                modules = [module]
            case _:
                continue
        for module in modules:
            if (library := module.split(".")[0]) not in DOORS:
                continue
            allowed = DOORS[library]
            if allowed is None:
                assert "api" in path.parts, f"{module} belongs to the api"
            else:
                places = {
                    name(path),
                    path.name,
                    *(str(above.relative_to(ROOT)) for above in path.parents[:-1] if above.is_relative_to(ROOT)),
                }
                assert places & allowed, f"{module} belongs to {sorted(allowed)}"


def test_no_module_is_dead():
    """Each module is imported by another, or is where a process begins."""
    text = "\n".join(path.read_text("utf-8") for path in SOURCES)
    for path in SOURCES:
        if path.name in ("__init__.py", "__main__.py"):
            continue
        inside = path.parent.relative_to(ROOT / "src" if "src" in path.parts else ROOT)
        dotted = ".".join(inside.parts if inside.parts[0] == "tidemill" else ("tidemill", *inside.parts))
        imported = rf"(from|import) {dotted}\.{path.stem}\b|from {dotted} import (\([^)]*|[^\n]*)\b{path.stem}\b"
        started = rf'"{dotted}\.{path.stem}"'
        assert re.search(f"{imported}|{started}", text), f"nobody imports {name(path)}"


def test_nothing_is_left_for_later():
    """No marker of unfinished work."""
    for path in tracked("*.py", "*.toml", "*.md", "Makefile"):
        assert not MARKERS.search(path.read_text("utf-8")), f"{name(path)} has a marker of unfinished work"


def test_no_large_file_is_tracked():
    """Data is made, not kept."""
    for path in tracked():
        assert path.stat().st_size <= BLOB_BYTES_MAX, name(path)


def test_lock_files_name_no_registry():
    """A lock file says what, not from where."""
    for path in tracked("*.lock", "*lock.json"):
        text = path.read_text("utf-8")
        assert "resolved" not in text, name(path)
        assert not re.search(r"https?://", text), name(path)
