"""The measures of the source: `make measures`, or `python tests/measures.py FOLDER` for another checkout.

It reads the files alone and imports nothing of them, so it measures any commit. Complexity is McCabe's, as ruff's
rule C901 counts it.
"""

import ast
import json
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGES = ("api", "ingest", "processors", "results", "webhooks", "schemas", "src/tidemill")
FUNCTION_LINES_GOOD = 20
COMPLEXITY_MAX = 12
ATTRIBUTES_MAX = 15
PARAMETERS_MAX = 8
FOLDER_MODULES_MAX = 12
MODULE_LINES_MIN = 40
MODULE_LINES_MAX = 400
DATA = re.compile(r"BaseModel|BaseSettings|Struct|Enum|Protocol|TypedDict|NamedTuple|_?Record|_?Message")
"""Bases of classes whose fields define a format, and do not count as state."""
AGENTLESS = ("nobody", "somebody", "whoever", "told", "what is", "where there is", "of which")
"""Words of sentences that hide who does what."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A module of the product."""

    root: Path
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text("utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def name(self) -> str:
        """Its path from the root."""
        return str(self.path.relative_to(self.root))

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())

    @property
    def dotted(self) -> str:
        """The name that it is imported by."""
        parts = self.path.relative_to(self.root).with_suffix("").parts
        parts = parts[1:] if parts[0] == "src" else ("tidemill", *parts)
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def package(self) -> str:
        """The package that it lies in."""
        return self.dotted if self.is_package else self.dotted.rpartition(".")[0]

    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    def classes(self) -> Iterator[ast.ClassDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))


def modules(root: Path) -> list[Module]:
    """All modules of the product; links of src/tidemill are not followed."""
    paths = (path for package in PACKAGES for path in sorted((root / package).rglob("*.py")))
    return [Module(root, path) for path in paths if not _is_linked(root, path)]


def _is_linked(root: Path, path: Path) -> bool:
    return any(part.is_symlink() for part in (path, *path.parents) if part.is_relative_to(root))


def function_lines(node: Function) -> int:
    """The lines of a function's body, without its docstring."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def parameters(node: Function) -> int:
    """How many parameters it takes, without self."""
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return len([each for each in named if each.arg not in ("self", "cls")])


def attributes(node: ast.ClassDef) -> int:
    """How many attributes an object of the class has: fields of a dataclass, and what methods set on self."""
    if any(DATA.search(ast.unparse(base)) for base in node.bases):
        return 0
    names = {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute)
        and isinstance(each.ctx, ast.Store)
        and ast.unparse(each.value) == "self"
    }
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        names |= {ast.unparse(each.target) for each in node.body if isinstance(each, ast.AnnAssign)}
    return len(names)


def imports(found: list[Module]) -> dict[Module, set[Module]]:
    """The modules of the product that each one imports."""
    by_name = {module.dotted: module for module in found}
    return {module: {by_name[name] for name in _imported(module.tree, by_name)} - {module} for module in found}


def _imported(tree: ast.Module, by_name: dict[str, Module]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in by_name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in below if name in by_name)
            if node.module in by_name and any(name not in by_name for name in below):
                yield node.module


def importers(found: list[Module]) -> dict[Module, set[Module]]:
    """The modules that import each one."""
    by: dict[Module, set[Module]] = {module: set() for module in found}
    for module, wanted in imports(found).items():
        for each in wanted:
            by[each].add(module)
    return by


def rooms(found: list[Module]) -> dict[Module, str]:
    """The room of each module: its package, or itself if its package has packages below."""
    parents = {module.package.rpartition(".")[0] for module in found}
    return {module: module.dotted if module.package in parents else module.package for module in found}


def cycles(found: list[Module]) -> list[list[str]]:
    """The groups of rooms that import each other, directly or through others."""
    room_of = rooms(found)
    graph: dict[str, set[str]] = defaultdict(set)
    for module, wanted in imports(found).items():
        graph[room_of[module]] |= {room_of[each] for each in wanted} - {room_of[module]}
    reached = {room: _reach(graph, room) for room in list(graph)}
    groups = {
        tuple(sorted(other for other in reach if room in reached.get(other, ())))
        for room, reach in reached.items()
    }
    return [list(group) for group in sorted(groups) if len(group) > 1]


def _reach(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    rest = [start]
    while rest:
        for room in graph.get(rest.pop(), ()):
            if room not in seen:
                seen.add(room)
                rest.append(room)
    return seen


def folders(found: list[Module]) -> dict[str, int]:
    """How many modules each folder has."""
    count: dict[str, int] = defaultdict(int)
    for module in found:
        if not module.is_package:
            count[str(module.path.parent.relative_to(module.root))] += 1
    return dict(sorted(count.items(), key=lambda pair: -pair[1]))


def complexities(root: Path) -> dict[str, int]:
    """The complexity of each function above 1, by place."""
    ruff = [str(Path(sys.executable).parent / "ruff"), "check", "--isolated", "--select", "C901", "--no-cache"]
    options = ["--config", "lint.mccabe.max-complexity=0", "--output-format", "json", "--exit-zero"]
    places = [package for package in PACKAGES if (root / package).exists()]
    done = subprocess.run([*ruff, *options, *places], cwd=root, capture_output=True, text=True, check=True)
    found = {}
    for each in json.loads(done.stdout):
        name, number = re.search(r"`(\w+)` is too complex \((\d+) >", each["message"]).groups()
        found[f"{Path(each['filename']).relative_to(root.resolve())}:{name}"] = int(number)
    return found


def explanations(module: Module) -> Iterator[str]:
    """The comments and docstrings of a module."""
    yield from re.findall(r"#.*", module.text)
    for node in ast.walk(module.tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.value.value


def prose(root: Path, found: list[Module]) -> str:
    """Everything that people read: docstrings, comments, messages and docs."""
    comments = (re.findall(r"#.*", module.text) for module in found)
    texts = (
        node.value
        for module in found
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
    )
    docs = (path.read_text("utf-8") for path in (*root.glob("*.md"), *sorted((root / "docs").rglob("*.md"))))
    return "\n".join([*(line for lines in comments for line in lines), *texts, *docs])


def rows(root: Path) -> Iterator[tuple[str, str]]:
    """Each measure with its value."""
    found = modules(root)
    yield "modules", str(len(found))
    yield "lines of the product", f"{sum(module.lines for module in found):,}"
    tests = [path for path in (root / "tests").rglob("*.py") if path.is_file()]
    yield "lines of the tests", f"{sum(len(path.read_text('utf-8').splitlines()) for path in tests):,}"
    yield from _of_functions(root, found)
    yield from _of_modules(found)
    text = prose(root, found)
    for words in AGENTLESS:
        yield f'"{words}"', str(len(re.findall(rf"\b{words}\b", text, re.IGNORECASE)))


def _of_functions(root: Path, found: list[Module]) -> Iterator[tuple[str, str]]:
    functions = [node for module in found for node in module.functions()]
    lines = [function_lines(node) for node in functions]
    yield "functions", str(len(lines))
    yield "lines of a function: median", f"{statistics.median(lines):g}"
    within = sum(number <= FUNCTION_LINES_GOOD for number in lines)
    yield f"lines of a function: within {FUNCTION_LINES_GOOD}", f"{100 * within / len(lines):.1f} %"
    yield "lines of a function: most", str(max(lines))
    yield from _bound("complexity", list(complexities(root).values()), COMPLEXITY_MAX)
    yield from _bound("parameters", [parameters(node) for node in functions], PARAMETERS_MAX)
    of_classes = [attributes(node) for module in found for node in module.classes()]
    yield from _bound("attributes of a class", of_classes, ATTRIBUTES_MAX)


def _of_modules(found: list[Module]) -> Iterator[tuple[str, str]]:
    yield from _bound("modules of a folder", list(folders(found).values()), FOLDER_MODULES_MAX)
    real = [module for module in found if not module.is_package]
    small = [module for module in real if module.lines < MODULE_LINES_MIN]
    yield f"modules below {MODULE_LINES_MIN} lines", str(len(small))
    yield (
        f"modules of {MODULE_LINES_MIN} to {MODULE_LINES_MAX} lines",
        str(sum(MODULE_LINES_MIN <= module.lines <= MODULE_LINES_MAX for module in real)),
    )
    yield f"modules above {MODULE_LINES_MAX} lines", str(sum(module.lines > MODULE_LINES_MAX for module in real))
    by = importers(found)
    yield "modules that one other imports", str(sum(len(by[module]) == 1 for module in real))
    yield f"of these below {MODULE_LINES_MIN} lines", str(sum(len(by[module]) == 1 for module in small))
    groups = cycles(found)
    yield "rooms in import cycles", f"{sum(map(len, groups))} in {len(groups)} cycles" if groups else "0"


def _bound(what: str, numbers: list[int], most: int) -> Iterator[tuple[str, str]]:
    yield f"{what}: most", str(max(numbers))
    yield f"{what}: above {most}", str(sum(number > most for number in numbers))


def main() -> None:
    """Print the measures, a line each."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
    for name, value in rows(root):
        print(f"{name:45} {value:>12}")  # noqa: T201  this is what it is for


if __name__ == "__main__":
    main()
