"""Foreign text reaches the terminal without control characters."""

import io
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from tidemill import terminal
from tidemill.terminal import Console, say, stderr_console

HOSTILE = "ok \x1b]0;owned\x07\x1b[2J\u202e\r\nforged line 日本"
STYLES = re.compile(r"\x1b\[[0-9;]*m")


def written(show, **options):
    console = Console(file=io.StringIO(), width=2_000, markup=False, highlight=False, soft_wrap=True, **options)
    show(console)
    return console.file.getvalue()


def table_of(text):
    table = Table("name", box=None)
    table.add_row(Text(text))
    return table


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("whole", [str, Text, table_of], ids=["string", "text", "cell of a table"])
@given(found=st.text() | st.just(HOSTILE))
def test_control_characters_are_escaped(is_terminal, whole, found):
    """In all output: no control character but newlines, and our own styles on a terminal."""
    shown = written(lambda console: console.print(whole(found), style="red"), force_terminal=is_terminal)
    plain = STYLES.sub("", shown)
    assert all(char.isprintable() or char == "\n" for char in plain), plain


def test_a_string_is_one_line():
    """A line break in foreign text starts no line of ours."""
    assert written(lambda console: console.print(f"said: {HOSTILE}")).count("\n") == 1


def test_readable_text_is_unchanged():
    """In any language."""
    assert terminal.printable("naïve 日本 ok") == "naïve 日本 ok"
    assert terminal.printable("a\x1b]0;b\n\ud800") == "a\\x1b]0;b\\n\\ud800"
    assert terminal.printable(b"a\xff\x00") == "a\\xff\\x00"


def test_say_keeps_line_breaks(capsys):
    """And no other control character."""
    terminal.say("one\x1b[31m\ntwo")
    assert capsys.readouterr().out == "one\\x1b[31m\ntwo\n"


def test_output_is_never_truncated(capsys, monkeypatch):
    """Neither on a narrow terminal nor in a file."""
    monkeypatch.setenv("COLUMNS", "20")
    table = Table("batch", "cost_total", box=None)
    table.add_row("batch_0123456789abcdef0123456789abcdef", "0.2529035")
    terminal.show_table(table)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["batch", "cost_total"], ["batch_0123456789abcdef0123456789abcdef", "0.2529035"]]


@pytest.mark.parametrize(
    ("called", "on_path", "shown"),
    [
        ("bin/tidemill", False, "bin/tidemill"),
        ("bin/tidemill", True, "tidemill"),
        ("a folder/tidemill", False, "'a folder/tidemill'"),
        ("package/__main__.py", False, f"{sys.executable} -m tidemill"),
        ("bin/pytest", False, "tidemill"),
    ],
)
def test_a_hint_can_be_copied(tmp_path, monkeypatch, capsys, called, on_path, shown):  # noqa: PLR0917
    """It names the program as the user called it; other text stays."""
    (program := tmp_path / called).parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", str(program.parent) if on_path else "/nowhere")
    say("start `tidemill up` on tidemill", err=True)
    stderr_console().print("start `tidemill up` on tidemill")
    assert capsys.readouterr().err == f"start `{shown} up` on tidemill\n" * 2
