"""What commands print: a table on a terminal, JSON in a pipe, and no styles where the user wants none."""

import asyncio
import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console as RichConsole
from support.service import KEY, Service
from support.waiting import WAIT_SECONDS_MAX
from typer import Typer
from typer.main import get_command
from typer.testing import CliRunner

from tidemill.__main__ import app
from tidemill.cli.options import AsJson
from tidemill.client import reports
from tidemill.schemas.resources.trouble import Trouble

DATA = {"list", "show", "usage", "audit", "deliveries"}
"""Last words of the commands that show data."""


@pytest.fixture
def service():
    """The stand-in of the service, which runs in a thread."""
    ready, ended, found = threading.Event(), asyncio.Event(), []

    async def serve():
        async with Service() as service:
            service.rows = {"tidemill": {"name": "nightly"}}
            found.extend((service, asyncio.get_running_loop()))
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(WAIT_SECONDS_MAX)
    yield found[0]
    found[1].call_soon_threadsafe(ended.set)
    thread.join(WAIT_SECONDS_MAX)


def on_a_terminal(service, *words, awaited=None, key=b"q", **environ):
    """What a command writes to a terminal of 60 columns; gets the key once the `awaited` text is there."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tidemill", *words, "--base-url", service.url, "--api-key", KEY]
    env = os.environ | {"COLUMNS": "60", "LINES": "50", "TERM": "xterm-256color"} | environ
    # The terminal is the controlling one, so that Ctrl-C becomes a signal.
    # A parent in the background may have made it ignore that signal.
    child = subprocess.Popen(
        ["env", "--default-signal=INT", "setsid", "--ctty", *command],
        stdin=theirs, stdout=theirs, stderr=theirs, env=env,
    )  # fmt: skip
    os.close(theirs)
    (bound := threading.Timer(WAIT_SECONDS_MAX, child.kill)).start()
    shown = b""
    try:
        while chunk := os.read(ours, 65_536):
            shown += chunk
            if awaited is not None and awaited in shown:
                os.write(ours, key)
                awaited = None
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    bound.cancel()
    assert (child.wait(WAIT_SECONDS_MAX), awaited) == (0, None), shown
    return shown.decode()


def test_a_terminal_gets_a_table_and_a_pipe_json(service):
    """With --json, a terminal gets JSON, too."""
    table = on_a_terminal(service, "list").splitlines()
    assert "created" in table[0]
    assert [line for line in table if "nightly" in line]
    assert json.loads(on_a_terminal(service, "list", "--limit", "1", "--json"))["object"] == "batch"
    command = [sys.executable, "-m", "tidemill", "list", "--base-url", service.url, "--api-key", KEY]
    piped = subprocess.run(command, capture_output=True, check=True, timeout=WAIT_SECONDS_MAX).stdout
    assert [json.loads(line)["id"] for line in piped.splitlines()] == service.ids


@pytest.mark.parametrize("trouble", Trouble)
def test_a_list_of_batches_in_trouble(service, trouble):
    """The command has the filters of the API."""
    on_a_terminal(service, "list", "--trouble", trouble, "--single")
    assert service.asked.items() >= {"trouble": trouble, "single": "true"}.items()


@pytest.mark.parametrize("off", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, "--no-color"])
def test_styles_are_off_where_the_user_wants_none(service, off):
    """By the environment or the option; otherwise the head of a table is bold."""
    words = [off] if isinstance(off, str) else []
    shown = on_a_terminal(service, *words, "list", **({} if words else off))
    assert ("\x1b[" in shown) == (off == {})


def test_the_page_of_commands_names_all_that_print_json():
    """In the first paragraph about output; all others print the same text everywhere."""
    page = (Path(__file__).parents[3] / "docs" / "reference" / "commands.md").read_text("utf-8")
    paragraph = page.partition("## Output\n\n")[2].partition("\n\n")[0]
    named = set(re.findall("`([a-z]+)`", paragraph))

    def walk(command, name):
        if below := getattr(command, "commands", None):
            return {found for word, one in below.items() for found in walk(one, word)}
        return {name} if any("--json" in one.opts for one in command.params) else set()

    assert named == walk(get_command(app), "")


def test_every_command_that_shows_data_takes_json():
    """By the same option."""
    shared = {}

    def walk(command, path):
        if below := getattr(command, "commands", None):
            for name, one in below.items():
                walk(one, [*path, name])
        elif path[-1] in DATA:
            shared[" ".join(path)] = [one for one in command.params if "--json" in one.opts]

    walk(get_command(app), [])
    assert len(shared) == 13, sorted(shared)
    help_text = AsJson.__metadata__[0].help
    assert all(found and found[0].help == help_text for found in shared.values()), shared


def test_a_runner_is_a_pipe():
    """So the option is on without being named."""
    seen = []
    one = Typer()

    @one.command()
    def show(*, as_json: AsJson = False) -> None:
        seen.append(as_json)

    assert CliRunner().invoke(one).exit_code == 0
    assert seen == [True]


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "Ctrl-C"])
@pytest.mark.parametrize(("words", "awaited"), [(["list", "--watch"], b"created"), (["top"], b"nightly")])
def test_a_terminal_follows_until_a_key_ends_it(service, words, awaited, key):
    """`top` also shows rates and queues, and why it shows no servers."""
    shown = on_a_terminal(service, *words, awaited=awaited, key=key)
    assert "nightly" in shown
    if words == ["top"]:
        assert all(
            each in shown
            for each in ("160.2 lines/s in", "(mean of 5 minutes)", "processors", "17,000", "servers: http")
        )


def test_following_needs_a_terminal(service):
    """In a pipe it ends with a message instead of control codes."""
    command = [sys.executable, "-m", "tidemill", "top", "--base-url", service.url, "--api-key", KEY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "need a terminal" in done.stderr


def test_open_shows_the_page_of_a_batch(service, tmp_path):
    """It prints the address, and on a terminal calls the browser with it."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    page = f"{service.url.removesuffix('/v1')}/dashboard/#/batches/batch_1"
    assert page in on_a_terminal(service, "open", "batch_1", BROWSER=f"{browser} %s")
    assert (tmp_path / "opened").read_text() == f"{page}\n"


@pytest.mark.parametrize(
    ("words", "step"),
    [
        (["rerun", "batch_1", "--api-key", "sk-wrong"], "`tidemill keys create`"),
        (["servers", "list"], "not an inference server"),
        (["list", "--base-url", "http://127.0.0.1:9/v1"], "`tidemill up`"),
        (["apply", "-f", "none.toml"], "Check the path."),
    ],
)
def test_an_error_says_what_to_do_next(service, words, step, monkeypatch):
    """After the message, on a line of its own."""
    monkeypatch.setenv("TIDEMILL_BASE_URL", service.url)
    monkeypatch.setenv("TIDEMILL_API_KEY", KEY)
    monkeypatch.setattr("sys.argv", ["tidemill"])
    done = CliRunner().invoke(app, words)
    assert done.exit_code in {2, 7}
    *_, message, last = done.stderr.splitlines()
    assert message.startswith("tidemill: ")
    assert step in last


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["gpu-1", "48/64", "1,200", "7", "3", "16.2", "1,480", "0.41 s", "2.50 s", "at work"]),
        (
            {"in_flight": 0, "queued": None},
            ["gpu-1", "0/64", "1,200", "3", "16.2", "1,480", "0.41 s", "2.50 s", "ready"],
        ),
        ({"cause": {"reason": "queued", "message": "It is full."}}, ["gpu-1", "48/64", "1,200", "at work"]),
        ({"cause": {"reason": "server_refuses", "message": "gpu-1 answers 503."}}, ["gpu-1", "answers 503."]),
        (None, ["gpu-1", "not reported"]),
    ],
)
@pytest.mark.parametrize("width", [60, 80, 120])
def test_top_shows_the_load_of_a_server(changes, words, width):
    """Its calls, what waits and why; a narrow terminal leaves columns out, and loses no state."""
    load = {
        "in_flight": 48, "limit": 64, "lines_waiting": 1_200, "queued": 7, "refused": 3, "lines_per_second": 16.2,
        "tokens_per_second": 1_480.4, "duration_seconds": {"p50": 0.412, "p99": 2.5}, "cause": None,
    }  # fmt: skip
    server = {"id": "gpu-1", "fault": None, "used_by": ["m"], "load": None if changes is None else load | changes}
    console = RichConsole(width=width, file=io.StringIO())
    console.print(reports.servers_table([server], width))
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    wanted = words if width == 120 else [words[0], words[-1]]
    assert all(word in " ".join(shown.split()) for word in wanted), shown
