"""The site of the docs: the build is strict, and a reader needs nothing but its files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect
from support.waiting import WAIT_SECONDS_MAX

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.e2e


def build(docs, site, version=""):
    """Build the docs of a folder, as `make site` does."""
    return subprocess.run(
        [sys.executable, docs / "build.py", site], env={**os.environ, "DOCS_VERSION": version},
        capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The whole site, with the docs of one version."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "docs", folder, "1.10.0")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def page(browser, site):
    """A page that may load files of the site, and fails the test if it asks for anything else."""
    strays = []

    def serve(route):
        if route.request.url.startswith(site.as_uri()):
            route.continue_()
        else:
            strays.append(route.request.url)
            route.abort()

    page = browser.new_page(reduced_motion="reduce")
    page.route("**/*", serve)
    yield page
    page.close()
    assert not strays


def test_a_reader_searches_without_a_server(page, site):
    """From the address of the whole site to a word in a page, from the disk."""
    page.goto(f"{site.as_uri()}/index.html")
    expect(page).to_have_title("Tidemill 1.10.0")
    expect(page.locator(".sidebar-brand")).to_contain_text("Tidemill 1.10.0")
    page.get_by_role("textbox", name="Search").fill("headroom")
    page.get_by_role("textbox", name="Search").press("Enter")
    page.locator("#search-results").get_by_role("link", name="Connect a model server", exact=True).click()
    expect(page.get_by_role("heading", name="Keep people fast beside batches")).to_be_visible()


@pytest.mark.parametrize("width", [390, 1440])
def test_a_page_fits(page, site, width):
    """The longest tables and blocks of code scroll in themselves."""
    page.set_viewport_size({"width": width, "height": 900})
    for name in ("README", "how-to/backends", "reference/api/batches", "reference/settings"):
        page.goto(f"{site.as_uri()}/1.10.0/{name}.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_every_version_is_listed(site):
    """Newest first, by number; the address of the whole site leads to it."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; import build; build.list_versions(Path(sys.argv[1]))",
            versions := _versions(site, "1.9.0", "main"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT / "docs")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (versions / "versions.html").read_text()
    assert text.index(">1.10.0<") < text.index(">1.9.0<") < text.index(">main<")
    assert "url=1.10.0/index.html" in (versions / "index.html").read_text()


def _versions(site, *more):
    copy = site.with_name("versions")
    for name in (*more, "1.10.0"):
        (copy / name).mkdir(parents=True)
        shutil.copy(site / "1.10.0" / "index.html", copy / name)
    return copy


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("[nowhere](how-to/nowhere.md)", "nowhere.md"),
        ("[no heading](how-to/cluster.md#no-such-heading)", "no-such-heading"),
        ("![no image](images/none.png)", "none.png"),
        (None, "isn't included in any toctree"),
    ],
)
def test_a_faulty_page_fails_the_build(tmp_path, fault, message):
    """A link to a missing page, heading or image, and a page that no index names."""
    docs = tmp_path / "docs"
    names = ("conf.py", "build.py", "README.md", "templates", "how-to/cluster.md")
    for name in names:
        source, target = ROOT / "docs" / name, docs / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    # A small site: the index has this one page.
    (docs / "README.md").write_text("# Docs\n\n## How-to guides: do\n\n- [Cluster](how-to/cluster.md)\n")
    (docs / "how-to" / "cluster.md").write_text("# Run a cluster\n\n## Kafka\n\nText.\n")
    assert build(docs, tmp_path / "site").returncode == 0
    if fault is None:
        (docs / "how-to" / "lost.md").write_text("# Lost\n\nText.\n")
    else:
        (docs / "README.md").write_text((docs / "README.md").read_text() + f"\n{fault}\n")
    done = build(docs, tmp_path / "site")
    assert done.returncode != 0
    assert message in done.stderr
