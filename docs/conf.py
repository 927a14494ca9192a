# ruff: noqa: INP001 - Sphinx's configuration
"""Configures Sphinx for the site of the docs, which `make site` builds with docs/build.py."""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

from tidemill import __version__

DOCS = Path(__file__).resolve().parent
INDEX = "README"
FILES_URL = os.environ.get("DOCS_FILES_URL", "")
"""Address of the repository's files at this version; without it the site names them and has no link to them."""
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s:#]+)(#[^)]*)?\)")

project = "Tidemill"
release = version = os.environ.get("DOCS_VERSION") or __version__
extensions = ["myst_parser"]
root_doc = INDEX
myst_heading_anchors = 4
nitpicky = True
smartquotes = False
highlight_language = "text"
templates_path = ["templates"]
html_theme = "furo"
html_title = f"Tidemill {release}"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_use_index = False
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "versions.html",
        "sidebar/scroll-end.html",
    ]
}


def read(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Prepare a page: the repository's Markdown has no tables of contents, and has links to files outside docs."""
    page = DOCS / f"{docname}.md"
    tables = _tables(docname, source[0]) if page.stem == INDEX else ""
    source[0] = LINK.sub(lambda link: _outside(page, link), source[0]) + tables


def _tables(docname: str, text: str) -> str:
    """The table of contents under each heading of an index page: the pages below it that have a link there."""
    first, *rest = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    sections = list(zip(rest[::2], rest[1::2], strict=True)) if docname == INDEX else [("", first)]
    tables = ""
    for heading, section in sections:
        pages = [
            path for _, path, _ in LINK.findall(section) if path.endswith(".md") and not path.startswith("../")
        ]
        caption = f":caption: {heading.partition(':')[0]}\n" if heading else ""
        tables += "\n```{toctree}\n:hidden:\n" + caption + "\n".join(["", *dict.fromkeys(pages)]) + "\n```\n"
    return tables


def _outside(page: Path, link: re.Match[str]) -> str:
    text, path, _ = link.groups()
    target = (page.parent / path).resolve()
    if target.is_relative_to(DOCS):
        return link[0]
    name = target.relative_to(DOCS.parent)
    return f"[{text}]({FILES_URL}/{name})" if FILES_URL else text


def setup(app: Sphinx) -> None:
    """Register the step above."""
    app.connect("source-read", read)
