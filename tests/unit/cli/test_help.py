"""The help and the completion of the commands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import WAIT_SECONDS_MAX
from typer.main import get_command

from tidemill.__main__ import app


def commands(command, path=()):
    """All commands that run, each with the words that name it."""
    below = getattr(command, "commands", {})
    if path and (not below or command.invoke_without_command):
        yield path, command
    for name, one in below.items():
        yield from commands(one, (*path, name))


COMMANDS = list(commands(get_command(app)))


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_the_help_of_every_command_has_an_example(path, command):
    """It names this command, and has arguments and options that the command takes."""
    examples = re.findall(r"^ *Example: `(.+)`$", command.help, re.MULTILINE)
    assert len(examples) == 1, command.help
    program, *words = shlex.split(examples[0])
    assert (program, *words[: len(path)]) == ("tidemill", *path)
    with command.make_context(" ".join(path), words[len(path) :]) as context:
        assert context.params.keys() == {one.name for one in command.params if one.expose_value}


def test_every_command_that_checks_something_says_how_it_ends():
    """The docs name them."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "commands.md").read_text("utf-8")
    (listed,) = re.findall(r"Those that check something end with 1 .*?:\s(.*?);", page, re.DOTALL)
    named = re.findall(r"`([a-z ]+)`", listed)
    helps = {" ".join(path): command.help for path, command in COMMANDS}
    assert len(named) >= 8
    assert not [name for name in named if "Exit codes: 0 " not in helps[name]]


def tidemill(*words, **environ):
    command = [sys.executable, "-m", "tidemill", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=WAIT_SECONDS_MAX, env=environ
    ).stdout


@pytest.mark.parametrize(
    ("shell", "written", "asked"),
    [
        ("bash", ".bash_completions/tidemill.sh", {"COMP_WORDS": "tidemill webhooks d", "COMP_CWORD": "2"}),
        ("zsh", ".zfunc/_tidemill", {"_TYPER_COMPLETE_ARGS": "tidemill webhooks d"}),
        ("fish", ".config/fish/completions/tidemill.fish",
         {"_TYPER_COMPLETE_ARGS": "tidemill webhooks d", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)  # fmt: skip
def test_one_command_installs_completion(shell, written, asked, tmp_path):
    """The shell's file calls the program, whose answer are the commands that begin so."""
    environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    detected = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    tidemill("--install-completion", shell, **environ, **detected)
    script = (tmp_path / written).read_text("utf-8")
    assert f"complete_{shell}" in script
    variable = re.search(r"_\w+_COMPLETE(?==)", script)[0]
    found = tidemill(**environ, **asked, **{variable: f"complete_{shell}"})
    assert "deliveries" in found
    assert "delete" in found
    assert "rotate" not in found
