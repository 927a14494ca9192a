"""The files of the dashboard, and the policy that keeps foreign code out."""

import base64
import hashlib
import json
import re
import shutil
import subprocess

import pytest
from support.dependencies import client_of, open_dependencies
from support.waiting import WAIT_SECONDS_MAX

from tidemill.api.routes.dashboard.session import FOLDER
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.resources.waiting import USUAL

NAMES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file())
VENDOR = "vendor/"
SCRIPTS = [name for name in NAMES if name.endswith(".js") and not name.startswith(VENDOR)]
LINES_MAX = 400
POLICY = {
    "default-src": {"'none'"},
    "script-src": {"'self'", "the import map"},
    "style-src": {"'self'"},
    "img-src": {"'self'", "blob:"},
    "connect-src": {"'self'"},
    "base-uri": {"'none'"},
    "form-action": {"'none'"},
    "frame-ancestors": {"'none'"},
}
"""Pictures of answers are blobs of the page; browsers accept an import map only inline."""
UNSAFE = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|javascript:"


CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"q":1}'}}
THOUGHT = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]}
WORDS = [
    ({"choices": [{"message": {"content": "Wait.", "tool_calls": [CALL]}}]}, ['Wait.\nlook({"q":1})']),
    ({"choices": [{"message": {"content": None, "refusal": "No."}}, {"text": "t"}]}, ["No.", "t"]),
    ({"output": [THOUGHT, {"type": "message", "content": [{"type": "output_text", "text": "42"}]}]}, ["42"]),
    ({"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}]}, ["No."]),
    ({"output": [{"type": "function_call", "name": "look", "arguments": "{}"}]}, ["look({})"]),
    ({"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "42"}]}, ["42"]),
    ({"content": [{"type": "tool_use", "name": "look", "input": {"q": 1}}]}, ['look({"q":1})']),
    ({"content": [{"type": "image"}]}, ["[image]"]),
    ({"text": "heard"}, ["heard"]),
    ({"data": [{"embedding": [1]}]}, []),
]
"""Bodies of answers, and the words that the dashboard shows of them."""


@pytest.mark.skipif((node := shutil.which("node")) is None, reason="Node.js is not installed")
def test_the_words_of_an_answer():
    """Calls of tools and refusals are words, too; reasoning is no answer."""
    source = base64.b64encode((FOLDER / "pages" / "batch" / "texts.js").read_bytes()).decode()
    program = f"""
        const {{ texts }} = await import("data:text/javascript;base64,{source}");
        console.log(JSON.stringify({json.dumps([body for body, _ in WORDS])}.map(texts)));
    """
    command = [str(node), "--input-type=module", "--eval", program]
    found = subprocess.run(command, check=True, capture_output=True, timeout=WAIT_SECONDS_MAX).stdout
    assert json.loads(found) == [words for _, words in WORDS]


@pytest.fixture
async def client(tmp_path):
    """A client without a key."""
    async with open_dependencies(tmp_path) as deps, client_of(deps, None, base="http://api") as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/dashboard"])
async def test_the_root_redirects_to_the_dashboard(client, path):
    """So does its path without the slash."""
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["location"]) == (307, "/dashboard/")


async def test_files_have_a_content_security_policy(client):
    """It forbids other origins and inline code, but for the import map; a cached file gets a 304."""
    for name in ["", *NAMES]:
        answer = await client.get(f"/dashboard/{name}")
        assert answer.status_code == 200, name
        policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
        hashed = re.sub(r"'sha256-[A-Za-z0-9+/=]{44}'", "the import map", policy["script-src"])
        assert hashed == "'self' the import map"
        found = {rule: set(text.split()) for rule, text in policy.items() if rule != "script-src"}
        assert {**found, "script-src": POLICY["script-src"]} == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = await client.get(f"/dashboard/{name}", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        if name.endswith((".js", ".mjs")):
            assert answer.headers["content-type"].startswith("text/javascript")


async def test_other_files_are_not_served(client):
    """Least of all files of the machine."""
    for name in ("nothing.js", "..%2Fapp.py", "%2Fetc%2Fpasswd"):
        assert (await client.get(f"/dashboard/{name}")).status_code == 404


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_insert_text_not_html(name):
    """Each imported module exists, none comes from elsewhere, and a module is short."""
    text = (FOLDER / name).read_text("utf-8")
    assert not re.search(UNSAFE + "|dangerouslySetInnerHTML", text)
    assert len(text.splitlines()) <= LINES_MAX
    mapped = json.loads(
        re.findall(r'importmap">(.*?)</script>', (FOLDER / "index.html").read_text(), re.DOTALL)[0]
    )
    for module in re.findall(r'(?:from |import\()"([^"]+)"', text):
        target = mapped["imports"][module] if module in mapped["imports"] else (FOLDER / name).parent / module
        assert (FOLDER / target).is_file(), module


def test_libraries_are_the_pinned_ones():
    """The manifest has every file with its hash, and the licence of each."""
    manifest = json.loads((FOLDER / VENDOR / "manifest.json").read_text("utf-8"))
    files = {name: entry for library in manifest for name, entry in library["files"].items()}
    licences = {library["licence_file"] for library in manifest}
    assert {f"{VENDOR}{name}" for name in {"manifest.json", *files, *licences}} == {
        name for name in NAMES if name.startswith(VENDOR)
    }
    for name, entry in files.items():
        assert hashlib.sha256((FOLDER / VENDOR / name).read_bytes()).hexdigest() == entry["sha256"], name


def test_the_audit_page_filters_by_every_action():
    """That the trail has."""
    text = (FOLDER / "pages" / "audit.js").read_text("utf-8")
    assert [action for action in Action if f'"{action}"' not in text] == []


def test_the_dashboard_knows_the_usual_reasons():
    """Others make a batch look stalled."""
    text = (FOLDER / "pages" / "shown.js").read_text("utf-8")
    [listed] = re.findall(r"const USUAL = (\[.*?\]);", text)
    assert set(json.loads(listed)) == USUAL
