"""Runs the fenced blocks of a page as a reader does: in one shell, from the first to the last.

A comment above a block changes how the test treats it:

| comment | |
|---|---|
| `<!-- not run: why -->` | the block stays out, for that reason |
| `<!-- run by FILE -->` | another test runs it |
| `<!-- first: COMMANDS -->` | commands that the test runs before it, and the reader need not see |

A block of Python that follows "Save this as `NAME`" becomes that file. A block `text` after one that ran shows its
output, in which `…` stands for anything.
"""

import itertools
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from support.waiting import WAIT_SECONDS_MAX

PROGRAMS = ("sh", "python", "js", "ts")
"""Languages of blocks that a reader runs."""
_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<note>(?:(?!-->).)*) -->\n+)?^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"Save\s+this\s+as\s+`([^`]+)`")
_MARK = "@@ end of the block @@"


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """One fenced block.

    Attributes:
        line: Where it begins in its page.
        language: The language of the fence.
        code: Its lines, without the indent of a list.
        note: The comment above it.
        file: The name under which the page says to save it.
    """

    line: int
    language: str
    code: str
    note: str
    file: str | None

    @property
    def is_run(self) -> bool:
        """Whether the test of its page runs it."""
        return self.language in PROGRAMS and not self.note.startswith(("not run:", "run by "))


def snippets(page: Path) -> list[Snippet]:
    """The blocks of a page in their order."""
    text, found = page.read_text("utf-8"), []
    end = 0
    for block in _BLOCK.finditer(text):
        files = _FILE.findall(text[end : block.start("language")])
        code = re.sub(rf"^{block['indent']}", "", block["code"], flags=re.MULTILINE)
        found.append(
            Snippet(
                line=text.count("\n", 0, block.start("language")) + 1,
                language=block["language"].strip(),
                code=code,
                note=block["note"] or "",
                file=files[-1] if files and block["language"] == "python" else None,
            )
        )
        end = block.end()
    return found


def run(page: Path, folder: Path, environ: dict[str, str]) -> None:
    """Run the blocks of a page in one shell that stops at the first fault, and compare the outputs that it shows.

    Raises:
        AssertionError: A command failed, or its output differs.
    """
    blocks = snippets(page)
    ran = [block for block in blocks if block.is_run]
    script = "\n".join(_script(block) + f"\necho '{_MARK}'" for block in ran)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"exec 2>&1\n{script}"],
        cwd=folder, env=environ, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False,
    )  # fmt: skip
    outputs = done.stdout.split(f"{_MARK}\n")
    assert done.returncode == 0, f"{page.name}, line {ran[min(len(outputs), len(ran)) - 1].line}: {done.stdout}"
    of_block = dict(zip((block.line for block in ran), outputs, strict=False))
    for before, block in itertools.pairwise(blocks):
        if block.language == "text" and before.line in of_block:
            output = of_block[before.line]
            assert matches(block.code, output), f"{page.name}, line {block.line}: the page does not show\n{output}"


def matches(shown: str, output: str) -> bool:
    """Whether a page shows this output: each `…` is any text, and spaces at the ends of lines do not count."""
    lines = "\n".join(line.rstrip() for line in output.strip().splitlines())
    pattern = ".*".join(map(re.escape, re.split("…", shown.strip())))
    return re.search(pattern, lines, re.DOTALL) is not None


def _script(block: Snippet) -> str:
    first = block.note.removeprefix("first:") if block.note.startswith("first:") else ""
    match block.language, block.file:
        case "python", None:
            return f"{first}\npython - <<'END_OF_BLOCK'\n{block.code}END_OF_BLOCK"
        case "python", file:
            return f"{first}\ncat > {file} <<'END_OF_BLOCK'\n{block.code}END_OF_BLOCK"
        case _:
            return f"{first}\n{block.code}"
