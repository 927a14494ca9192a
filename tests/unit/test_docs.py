"""The docs match the code."""

import json
import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel
from support import snippets
from support.loading import loaded
from typer.main import get_command

from tidemill.__main__ import app
from tidemill.client.library.asynchronous import BatchOptions, TableOptions
from tidemill.configuration.servers import Server
from tidemill.configuration.settings import Settings
from tidemill.schemas.resources.batch import Extras, Progress

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
KINDS = ("tutorials", "how-to", "reference", "explanation")
GUIDES = [page for page in PAGES if page.parent.name in KINDS[:2]]


def anchor(heading: str) -> str:
    """The fragment that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.fixture(scope="module")
def generate():
    return loaded(ROOT / "docs" / "generate.py")


def tables(kind):
    """The tables of settings in a type, and in their fields."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for field in kind.model_fields.values():
            yield from tables(field.annotation)
    for part in get_args(kind):
        yield from tables(part)


def test_each_table_of_settings_has_a_section(generate):
    """The page knows their names; none of their settings is missing."""
    assert {*tables(Settings)} == {table for _, table in generate._SECTIONS}
    assert "| `issuer` | needed |" in generate.settings_page()
    assert "| `body_forced` | `{}` |" in generate.settings_page()


def test_the_page_of_settings_shows_bounds(generate):
    """And choices, also of settings that may be left out."""
    page = generate.settings_page()
    for name, said in (
        ("processor_processes", "From 1 to 64."), ("part_age_seconds", "From 0.01 to 3600."),
        ("share", "From 0.001 to 1."),
        ("protocol", "One of `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT`, `SASL_SSL`."),
    ):  # fmt: skip
        assert re.search(rf"^\| `{name}` \|.* {re.escape(said)} \|$", page, re.MULTILINE), name


def test_the_generated_pages_are_current(generate):
    """`make docs` was run, every setting says what it means, and rights and topics are those of the code."""
    for path, text in generate.pages().items():
        assert path.read_text("utf-8") == text, path
    assert "|  |" not in generate.settings_page()
    assert "| `tidemill.keys` | R W | R |" in generate.access_tables()


def test_each_page_is_in_the_index_of_its_kind():
    """docs/README.md names every page; decisions and the API have an index of their own."""
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    listed = re.findall(r"\]\(([a-z-]+/[^)#]+\.md)\)", index)
    of_kinds = [path for kind in KINDS for path in (ROOT / "docs" / kind).glob("*.md")]
    indices = [ROOT / "docs" / "reference" / "api" / "README.md", ROOT / "docs" / "decisions" / "README.md"]
    assert set(listed) == {str(path.relative_to(ROOT / "docs")) for path in (*of_kinds, *indices)}
    api = indices[0].read_text("utf-8")
    assert all(f"({path.name})" in api for path in indices[0].parent.glob("*.md") if path != indices[0])
    lost = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")} - {"docs/README.md"}
    assert not lost, "each page is of one kind"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """A relative link names a file that is there, and a heading of it."""
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target
        if heading:
            text = (page.parent / target if target else page).read_text("utf-8")
            assert heading in map(anchor, re.findall(r"^#+ (.*)$", text, re.MULTILINE)), heading


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_have_an_agent(page):
    """A page says who does what: riddles like "what is told" hide it."""
    text = re.sub(r"^```.*?^```$|`[^`]*`|\]\([^)]*\)", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(
        r"\b(?:nobody|somebody|whoever|(?:is|are) told|of which there is)\b.*", text, re.IGNORECASE
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_are_there(page):
    """A path in backquotes is a file of the repository."""
    for path in re.findall(
        r"`((?:api|ingest|processors|results|schemas|src|tests|docs|examples)/[^`\s]+)`", page.read_text()
    ):
        file, _, test = path.partition("::")
        assert (ROOT / file).exists(), path
        assert not test or f"def {test}(" in (ROOT / file).read_text("utf-8"), path


def test_the_fields_of_a_batch_beyond_those_of_openai_are_on_a_page():
    """By their name, with or without `tidemill.` before it; those of the progress on the page of batches."""
    batches = (ROOT / "docs" / "reference" / "api" / "batches.md").read_text("utf-8")
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    assert [name for name in Extras.model_fields if not re.search(rf"`(tidemill\.)?{name}\b", text)] == []
    assert [name for name in Progress.model_fields if f"`{name}`" not in batches] == []


def test_the_options_of_the_python_client_are_on_its_page():
    """Of batches and of tables."""
    page = (ROOT / "docs" / "how-to" / "python.md").read_text("utf-8")
    named = BatchOptions.__annotations__.keys() | TableOptions.__annotations__.keys()
    assert [name for name in sorted(named) if f"`{name}`" not in page] == []


def test_make_targets_exist():
    """Pages, workflows and hooks name targets that the Makefile has."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    hooks = [ROOT / ".pre-commit-config.yaml", *(ROOT / ".github").rglob("*.yml")]
    for page in (*PAGES, *hooks):
        named = r"(?:run: |entry: |`)make ([a-z]+)|^make ([a-z]+)(?:$|  | [A-Z]+=)"
        for target in map("".join, re.findall(named, page.read_text("utf-8"), re.MULTILINE)):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), (page, target)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_can_be_run_as_they_are_named(page):
    """`tidemill keys` alone does nothing: a command with others below it is named with one of these."""
    commands = get_command(app).commands
    for name, below in re.findall(
        r"(?:^|[`/])tidemill ([a-z][a-z-]*)(?: ([a-z]+))?", page.read_text("utf-8"), re.MULTILINE
    ):
        assert name in commands, f"tidemill {name}"
        if known := getattr(commands[name], "commands", None):
            assert below in known or (not below and commands[name].invoke_without_command), (
                f"tidemill {name} {below}"
            )


def test_a_decision_has_a_number_of_its_own():
    """The title repeats the number of the file name, and there are no holes."""
    titles = {
        path.name: path.read_text("utf-8").split("\n", 1)[0]
        for path in sorted((ROOT / "docs" / "decisions").glob("0*.md"))
    }
    numbers = [int(name[:4]) for name in titles]
    assert sorted(numbers) == list(range(1, len(numbers) + 1)), sorted(titles)
    for name, title in titles.items():
        assert title.startswith(f"# {int(name[:4])}. "), (name, title)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_each_program_of_a_page_is_run_or_says_why_not(page):
    """`tests/e2e/test_snippets.py` runs those without a comment; a comment names the test or the reason."""
    for block in snippets.snippets(page):
        where = f"{page.name}, line {block.line}"
        assert block.language in {*snippets.PROGRAMS, "toml", "json", "yaml", "text"}, where
        if block.language in snippets.PROGRAMS and not block.is_run:
            assert len(block.note.split()) > 2, f"{where}: why is it not run?"
        for name in re.findall(r"tests/\S+\.(?:py|mjs)", block.note):
            source = (ROOT / name).read_text("utf-8")
            assert page.name in source or not block.note.startswith("run by "), f"{where}: {name} does not run it"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_settings_of_a_page_are_valid(page, monkeypatch):
    """What a reader copies into `tidemill.toml`; servers that a block does not show are stubs."""
    monkeypatch.setenv("KAFKA_PASSWORD", "set")
    for block in snippets.snippets(page):
        if block.language == "toml":
            # This machine does not have the files that settings name.
            _check_settings(tomllib.loads(re.sub(r"^\w+_file = .*$", "", block.code, flags=re.MULTILINE)))
        elif block.language == "yaml":
            list(yaml.safe_load_all(block.code))
        elif block.language == "json" and "…" not in block.code:
            json.loads(block.code)


def _check_settings(found):
    if found.keys() <= Server.model_fields.keys() - Settings.model_fields.keys():
        Server.model_validate({"url": "http://127.0.0.1:8000/v1", **found})
        return
    for model in found.get("models", {}).values():
        model.setdefault("servers", [] if "backends" in model else ["gpu-1"])
    servers = {name for model in found.get("models", {}).values() for name in model["servers"]}
    stubs = {name: {"url": f"http://127.0.0.1:{8000 + number}/v1"} for number, name in enumerate(sorted(servers))}
    kafka = {"kafka": "kafka:9093"} if "kafka_security" in found else {}
    Settings(**{**kafka, **found, "servers": stubs | found.get("servers", {})})
