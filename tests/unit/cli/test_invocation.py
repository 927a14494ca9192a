"""Commands: groups of options, and errors before any work."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
from typer import Argument, Exit, Typer
from typer.main import get_command
from typer.testing import CliRunner

from tidemill.__main__ import app
from tidemill.cli import invocation
from tidemill.cli.options import NewBatchOptions, OperatorOptions

SERVICE = ("--base-url", "http://127.0.0.1:1/v1", "--api-key", "k")


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    """Run in a folder without settings and without a service."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("TIDEMILL_")]:
        monkeypatch.delenv(name)


def test_a_group_stands_for_its_options():
    """The command gets its values, wherever they are on the command line."""
    seen = []

    def command(name: Annotated[str, Argument()], *, results: NewBatchOptions) -> object:
        return name, results

    typer = Typer()
    typer.command()(
        invocation._with_groups(command, OperatorOptions, lambda begin, common: seen.append((begin(), common)))
    )
    done = CliRunner().invoke(typer, ["--again", "x", "-o", "out.jsonl", "--data", "folder"])
    assert done.exit_code == 0, done.output
    results = NewBatchOptions(output=Path("out.jsonl"), again=True)
    assert seen == [(("x", results), OperatorOptions(data=Path("folder")))]


def test_commands_that_create_batches_agree_on_their_options():
    """Only the completion window has another default: a rerun keeps the one of its lines."""
    commands = get_command(app).commands
    known = {}
    for name in ("run", "rerun", "replay"):
        for option in commands[name].params:
            if option.opts[0].startswith("-") and option.opts[0] not in {"--window", "--endpoint"}:
                assert known.setdefault(option.opts[0], option.help) == option.help, (name, option.opts)
    assert {"-o", "--errors", "--receipt", "--force", "--all", "--again", "--base-url"} <= known.keys()


@pytest.mark.parametrize("command", [["dead", "list"], ["rebuild", "batch_1"], ["purge", "batch_1"]])
def test_an_operators_command_without_a_kafka_says_what_to_do(command, tmp_path):
    """It has the exit code of a usage error."""
    done = CliRunner().invoke(app, [*command, "--data", str(tmp_path)])
    assert done.exit_code == 2, done.output
    assert "no Kafka is configured (TIDEMILL_KAFKA)" in done.output
    assert "--data names another folder" in done.output


def test_ctrl_c_while_the_program_starts_ends_it_silently():
    """Most of the start is imports, before any command could handle it."""
    code = """
import runpy, sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
runpy.run_module("tidemill", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_an_error_of_the_system_ends_an_operators_command_with_a_message(capsys):
    """Such as a store that does not answer."""

    async def work() -> None:
        raise OSError("the store s3://bucket does not answer")

    with pytest.raises(Exit) as ended:
        invocation.operate(work())
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err == "tidemill: the store s3://bucket does not answer\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["bench", "--mock", "http://127.0.0.1:1", "--case", "won"], "unknown case won; known are one, thousand"),
        (["acls", "--user", "nobody=me"], "expected ROLE=NAME with one of the roles"),
        (["verify", "none.jsonl"], "none.jsonl: No such file or directory"),
        (["api"], "kafka: not set; a stage outside"),
        (["ingest"], "kafka: not set; a stage outside"),
        (["results"], "kafka: not set; a stage outside"),
        (["dead", "requeue"], "pass the ids of dead letters, or --all"),
        (["purge"], "pass the id of a batch, or --project"),
        (["watch", "batch_1", "--errors", "e.jsonl", *SERVICE], "--input need -o"),
        (["rerun", "batch_1", "--only", "some", *SERVICE], "--only: some is not one of unfinished"),
        (["replay", "m", "--from", "yesterday", *SERVICE], "neither a time like"),
        (["usage", "--by", "colour", *SERVICE], "--by: colour is not one of"),
        (["keys", "token", "--stream", "s", "--for", "long", *SERVICE], "'long' is not a duration"),
    ],
)
def test_wrong_usage_is_explained_in_one_message(command, message):
    """It has its exit code, and no traceback."""
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.output.split())
