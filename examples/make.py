# ruff: noqa: INP001 - a script

"""Writes the example inputs, from the README, the docs and the docstrings: `python examples/make.py`."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "examples"
WORDS_MIN = 15
EMBEDDED_MAX = 200
CLASSIFIED = 16
TOPICS = ["files", "messages", "errors", "time"]
CLASSIFIED_CHARS = 160
"""The demo chat model reads some 200 tokens a second on one core, so its texts are short."""


def sections(path: Path) -> Iterator[tuple[str, str]]:
    """Yield heading and text of each section of a Markdown file, without code blocks and tables."""
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for part in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        prose = " ".join(line for line in body.splitlines() if not line.startswith("|"))
        yield heading.strip(), " ".join(prose.split())


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of a module and its public classes and functions."""
    module = ast.parse(path.read_text("utf-8"))
    for node in (module, *module.body):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = "" if isinstance(node, ast.Module) else node.name
            if not name.startswith("_"):
                yield name, " ".join((ast.get_docstring(node) or "").split())


def texts() -> Iterator[tuple[str, str]]:
    """Yield ids and texts, the docs before the code, without duplicates and very short ones."""
    seen: set[str] = set()
    markdown = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    folders = ("schemas", "api", "ingest", "processors", "results", "src/tidemill")
    code = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    for paths, parts in ((markdown, sections), (code, docstrings)):
        for path in paths:
            for name, text in parts(path):
                if len(text.split()) >= WORDS_MIN and text not in seen:
                    seen.add(text)
                    slug = re.sub(r"\W+", "-", name.lower()).strip("-")
                    yield f"{path.relative_to(ROOT).as_posix()}#{slug}".rstrip("#"), text


def request(custom_id: str, url: str, **body: Any) -> dict[str, Any]:
    """A line of an input."""
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def embedding(custom_id: str, text: str) -> dict[str, Any]:
    """An embedding request."""
    return request(custom_id, "/v1/embeddings", model="wordllama-256", input=text)


def classification(custom_id: str, text: str) -> dict[str, Any]:
    """A request for the topic of a text; the schema allows only the topics."""
    question = f"Text: {text[:CLASSIFIED_CHARS]}\nTopic, one of {', '.join(TOPICS)}:"
    schema = {"name": "topic", "strict": True, "schema": {"type": "string", "enum": TOPICS}}
    return request(
        custom_id,
        "/v1/chat/completions",
        model="smollm2-135m-instruct",
        messages=[{"role": "user", "content": question}],
        response_format={"type": "json_schema", "json_schema": schema},
        max_tokens=16,
        temperature=0,
    )


def mistaken(custom_id: str, text: str) -> list[str]:
    """Lines with mistakes, which their ids name."""
    well = embedding(custom_id, text)
    lines = [
        well,
        well,  # the same custom_id twice
        {**well, "custom_id": "wrong-method", "method": "GET"},
        {**well, "custom_id": "wrong-url", "url": "/v1/chat/completions"},
        {"custom_id": "no-body", "method": "POST", "url": "/v1/embeddings"},
        embedding("fine", text),
        request("no-model", "/v1/embeddings", input=text),
    ]
    return [*map(shown, lines), '{"custom_id": "torn-off", "method": "POST", "url": "/v1/emb\n']


def shown(line: dict[str, Any]) -> str:
    """A request as a line of JSON."""
    return json.dumps(line, ensure_ascii=False) + "\n"


def write(name: str, lines: list[str]) -> None:
    """Write an example."""
    (HERE / name).write_text("".join(lines), "utf-8")
    print(f"examples/{name}: {len(lines)} lines")  # noqa: T201 - a script's output


def main() -> None:
    """Write all examples."""
    found: dict[str, str] = {}
    for custom_id, text in texts():
        found.setdefault(custom_id, text)
    items = list(found.items())
    step = max(1, len(items) // CLASSIFIED)
    write("embed-docs.jsonl", [shown(embedding(*item)) for item in items[:EMBEDDED_MAX]])
    write("classify-docs.jsonl", [shown(classification(*item)) for item in items[::step][:CLASSIFIED]])
    write("with-mistakes.jsonl", mistaken(*items[0]))


if __name__ == "__main__":
    main()
