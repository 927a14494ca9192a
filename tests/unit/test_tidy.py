"""The rules of the source that a reviewer would otherwise repeat: sizes, imports, names."""

import ast
import functools
import re
import subprocess
from collections import Counter
from pathlib import Path

import measures
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("api", "ingest", "processors", "results", "webhooks", "schemas", "src/tidemill")
FUNCTION_LINES_MAX = 50
BLOB_BYTES_MAX = 600_000
CLIENTS = {
    "aiokafka": {"src/tidemill/kafka", "src/tidemill/local/embedded/broker.py", "kafka.py"},
    "faust": {"src/tidemill/faust"},
    "aioboto3": {"src/tidemill/storage/s3.py"},
    "aiohttp": {
        "src/tidemill/storage/s3_errors.py",
        "processors/http/client.py",
        "src/tidemill/http/bounded_connector.py",
        "src/tidemill/client/http",
        "src/tidemill/runtime/server_probe.py",
        "src/tidemill/bench/service.py",
        "src/tidemill/local",
        "webhooks/http.py",
        "api/access/provider.py",
    },
    "httptools": {"processors/http/connection.py"},
    "sqlite3": {"sqlite.py", "src/tidemill/client/runs/plan.py"},
    "fastapi": None,
}
"""Libraries that do I/O, each with the files and folders that may import it; only the api imports fastapi."""
ABOVE = {
    "folder": set(),
    "parameters": set(),
    "attributes": set(),
    "small": set(),
}
"""Exceptions that still exceed a measure; remove an entry once it no longer does."""
SHARED_NAMES_MAX = 70
"""Public names that several modules give to a class; lower it when a class gets a name of its own."""
LIBRARIES = {"asyncio", "faust", "pydantic"}
"""Libraries whose classes docstrings may name."""
MARKERS = re.compile(rf"\b({'|'.join(('TO' + 'DO', 'FIX' + 'ME', 'XX' + 'X', 'HA' + 'CK'))})\b")
"""In pieces, so that this file does not match itself."""


RIDDLES = re.compile(r"\b(nobody|somebody|whoever|told|of what is|where there is)\b", re.IGNORECASE)
"""Words of sentences that hide the agent; write who does what."""


def tracked(*patterns: str) -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, check=True)
    paths = (ROOT / name for name in listing.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


@functools.cache
def tree(path: Path) -> ast.Module:
    """Parsed only in the process that runs these tests: all of them collect this file."""
    return ast.parse(path.read_text("utf-8"))


@functools.cache
def modules() -> list[measures.Module]:
    return measures.modules(ROOT)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name)
def test_modules_and_functions_are_short(path):
    """A module is at most 400 lines, a function at most 50 without its docstring."""
    assert len(path.read_text("utf-8").splitlines()) <= measures.MODULE_LINES_MAX
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = node.end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


def test_no_message_names_a_file_of_the_docs():
    """An installation by pip does not have them; a docstring or comment is for readers of the source."""
    found = set()
    for module in modules():
        nodes = list(ast.walk(module.tree))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        texts = [node for node in nodes if isinstance(node, ast.Constant) and node not in docstrings]
        found |= {(module.name, node.value) for node in texts if "docs/" in str(node.value)}
    assert not found


def test_a_folder_has_few_modules():
    """At most 12, so that a reader sees its subject."""
    found = {
        folder for folder, count in measures.folders(modules()).items() if count > measures.FOLDER_MODULES_MAX
    }
    assert found <= ABOVE["folder"]


def test_a_call_has_few_parameters():
    """At most 8; the options of a command do not count."""
    found = {
        f"{module.name}:{node.name}"
        for module in modules()
        if not module.name.startswith("src/tidemill/cli")
        for node in module.functions()
        if measures.parameters(node) > measures.PARAMETERS_MAX
    }
    assert found <= ABOVE["parameters"]


def test_a_class_has_few_attributes():
    """At most 15: more of them are two objects in one."""
    found = {
        f"{module.name}:{node.name}"
        for module in modules()
        for node in module.classes()
        if measures.attributes(node) > measures.ATTRIBUTES_MAX
    }
    assert found <= ABOVE["attributes"]


def test_few_classes_share_a_name():
    """A reader who meets a name should not have to ask which of several classes it is."""
    names = Counter(node.name for module in modules() for node in module.classes() if node.name[0] != "_")
    shared = sorted(name for name, count in names.items() if count > 1)
    assert len(shared) <= SHARED_NAMES_MAX, f"give the new class another name than these: {', '.join(shared)}"


def test_a_small_module_has_several_importers():
    """One below 40 lines that a single other imports belongs into that."""
    importers = measures.importers(modules())
    small = [module for module in modules() if module.lines < measures.MODULE_LINES_MIN and not module.is_package]
    assert {module.name for module in small if len(importers[module]) == 1} <= ABOVE["small"]


def test_rooms_import_one_way():
    """No package imports another that imports it, directly or through others."""
    assert not measures.cycles(modules())


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_client_libraries_are_imported_in_few_places(path):
    """The name of a file shows whether it does I/O."""
    for node in ast.walk(tree(path)):
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom(module=str(module)):
                names = [module]
            case _:
                continue
        for module in names:
            if (library := module.split(".")[0]) not in CLIENTS:
                continue
            allowed = CLIENTS[library]
            if allowed is None:
                assert "api" in path.parts, f"{module} belongs to the api"
            else:
                places = {
                    name(path),
                    path.name,
                    *(str(above.relative_to(ROOT)) for above in path.parents[:-1] if above.is_relative_to(ROOT)),
                }
                assert places & allowed, f"{module} belongs to {sorted(allowed)}"


def test_the_codec_alone_spells_the_names_of_headers():
    """Those of its table; other modules use its constants."""
    found = {module.name: module for module in modules()}
    table = ast.get_docstring(found.pop("schemas/log/codec.py").tree) or ""
    headers = set(re.findall(r"^\| `(tidemill-[a-z]+)` ", table, re.MULTILINE))
    assert len(headers) > 10
    spelt = [
        (name, node.value)
        for name, module in found.items()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and node.value in headers
    ]
    assert not spelt


def test_no_module_is_dead():
    """Another module imports each module, or a process starts in it."""
    importers = measures.importers(modules())
    text = "\n".join(module.text for module in modules())
    for module in modules():
        if module.path.name not in ("__init__.py", "__main__.py") and not importers[module]:
            assert f'"{module.dotted}"' in text, f"no module imports {module.name}"


def caught(node):
    """The names of the errors that a `try` or a `with suppress(…)` catches."""
    if isinstance(node, ast.Try):
        types = [handler.type for handler in node.handlers if handler.type is not None]
    else:
        calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
        types = [each for call in calls if ast.unparse(call.func).endswith("suppress") for each in call.args]
    return {ast.unparse(each) for kind in types for each in getattr(kind, "elts", [kind])}


def decodes(node, decoders):
    """Whether the body of a `try` or `with` calls a decoder that fails in several ways."""
    calls = [call for each in node.body for call in ast.walk(each) if isinstance(call, ast.Call)]
    return any(ast.unparse(call.func) in decoders for call in calls)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_errors_of_decoders_are_caught_together(path):
    """Whoever catches one of `UNREADABLE` catches all: msgspec raises other errors at bad UTF-8 and deep JSON."""
    decoders = {"msgspec.json.decode", "json.loads"} | {
        f"{ast.unparse(target)}.decode"
        for node in tree(path).body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        if ast.unparse(node.value).startswith("msgspec.json.Decoder(")
        for target in getattr(node, "targets", [getattr(node, "target", None)])
    }
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Try | ast.With):
            found = {each.strip("()*") for each in caught(node)}
            place = f"{name(path)}:{node.lineno}"
            assert not found & {"msgspec.MsgspecError", "msgspec.DecodeError"}, place
            if found & {"ValueError", "UnicodeError"} and decodes(node, decoders):
                assert "UNREADABLE" in found or "RecursionError" in found, place


def test_named_modules_exist():
    """A module in backquotes, `name.py` or `name.Class`, is one of the code, a library or the page."""
    files = {name(path) for path in tracked()}
    of_stem: dict[str, str] = {}
    for path in SOURCES:
        of_stem[path.stem] = of_stem.get(path.stem, "") + path.read_text("utf-8")
    for path in [*SOURCES, *tracked("*.md")]:
        text = path.read_text("utf-8")
        for module in re.findall(r"`([\w/.-]+\.py)(?:::\w+)?`", text):
            is_known = any(f"/{file}".endswith(f"/{module}") for file in files)
            assert is_known or re.search(rf"Save\s+this\s+as\s+`{module}`", text), f"{name(path)} names {module}"
        for stem, member in re.findall(r"`([a-z_]+)\.([A-Z]\w+)`", text) if path.suffix == ".py" else ():
            if stem not in LIBRARIES:
                assert re.search(rf"\b{member}\b", of_stem.get(stem, "")), f"{name(path)} names {stem}.{member}"


def test_comments_and_docstrings_name_who_acts():
    """They contain no word that hides who does what."""
    for module in modules():
        for text in measures.explanations(module):
            found = RIDDLES.search(text)
            assert not found, f"{module.name} says {found[0]!r} in: {text[:200]}"


def test_nothing_is_left_for_later():
    """No marker of unfinished work."""
    for path in tracked("*.py", "*.toml", "*.md", "Makefile"):
        assert not MARKERS.search(path.read_text("utf-8")), f"{name(path)} has a marker of unfinished work"


def test_no_large_file_is_tracked():
    """Data is generated, not tracked."""
    for path in tracked():
        assert path.stat().st_size <= BLOB_BYTES_MAX, name(path)


def test_lock_files_name_no_registry():
    """A lock file pins packages, not the registry they come from."""
    for path in tracked("*.lock", "*lock.json"):
        text = path.read_text("utf-8")
        assert "resolved" not in text, name(path)
        assert not re.search(r"https?://", text), name(path)
