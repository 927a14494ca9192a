# ruff: noqa: INP001, T201 - a script
"""Builds the site of the docs: `make site`, or `python docs/build.py FOLDER`.

Each version has a folder of its own in FOLDER; `index.html` leads to the newest, and `versions.html` lists all.
`DOCS_VERSION` names the version, by default that of the package. The build makes no request to the network, and a
broken link, a page without a place in an index and every other warning fails it.
"""

import html
import shutil
import sys
import tempfile
from pathlib import Path

import conf
from packaging.version import InvalidVersion, Version
from sphinx.cmd.build import build_main

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Tidemill</title>{head}</head>
<body><h1>Tidemill</h1><ul>{items}</ul></body></html>
"""


def build(site: Path) -> int:
    """Build the docs into their folder of the site; returns Sphinx's exit code."""
    output = site / conf.release
    with tempfile.TemporaryDirectory() as doctrees:
        code = build_main(["-W", "--keep-going", "-q", "-d", doctrees, str(conf.DOCS), str(output)])
    if code == 0:
        shutil.copy(output / f"{conf.INDEX}.html", output / "index.html")
        list_versions(site)
    return code


def list_versions(site: Path) -> None:
    """Write the pages beside the versions."""
    names = sorted((path.parent.name for path in site.glob("*/index.html")), key=_age, reverse=True)
    items = "".join(f'<li><a href="{name}/index.html">{name}</a></li>' for name in map(html.escape, names))
    newest = f'<meta http-equiv="refresh" content="0; url={html.escape(names[0])}/index.html">'
    (site / "versions.html").write_text(_PAGE.format(head="", items=items), "utf-8")
    (site / "index.html").write_text(_PAGE.format(head=newest, items=items), "utf-8")


def _age(name: str) -> tuple[bool, Version]:
    """Releases by number; a name like `main` comes after all of them in the list."""
    try:
        return True, Version(name)
    except InvalidVersion:
        return False, Version("0")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    code = build(folder)
    if code == 0:
        print(f"{folder / conf.release / 'index.html'}")
    sys.exit(code)
