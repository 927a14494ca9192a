"""Foreign text reaches the terminal without control characters."""

import io
import re
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from tidemill import terminal
from tidemill.client.batches import COLUMNS
from tidemill.terminal import Console, program, say, stderr_console

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


ROW = ("1a2b3c4d", "a nightly run of the crawl", "in_progress", "100,000/100,000", "org/a-model-of-32b", "11-23")


@pytest.mark.parametrize("cells", [200, 80, 72, 60, 40])
def test_a_table_is_readable_from_60_columns_on(cells, monkeypatch, capsys):
    """Names wrap, ids and numbers do not; below, each value has a line, and nothing is cut at any width."""
    monkeypatch.setenv("COLUMNS", str(cells))
    terminal.show_table(COLUMNS, [ROW, ROW])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line.rstrip()) <= cells for line in lines)
    assert all(any(ROW[index] in line for line in lines) for index in (0, 3, 5))
    headers = "".join(each if isinstance(each, str) else str(each.header) for each in COLUMNS)
    is_table = "name" in lines[0]
    assert is_table == (cells >= 60)
    expected = headers * (1 if is_table else 2) + "".join(ROW) * 2
    assert Counter("".join(lines).replace(" ", "")) == Counter(expected.replace(" ", ""))


def test_output_is_never_truncated(capsys, monkeypatch):
    """On a narrow terminal an id longer than a line still comes whole."""
    monkeypatch.setenv("COLUMNS", "20")
    terminal.show_table(["batch", "cost_total"], [["batch_0123456789abcdef0123456789abcdef", "0.2529035"]])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["batch", "batch_0123456789abcdef0123456789abcdef"], ["cost_total", "0.2529035"]]


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}])
def test_styles_are_off_where_asked(environ, monkeypatch):
    """With NO_COLOR and on a dumb terminal there is no escape code, not even for bold text."""
    for name, value in {"TERM": "xterm-256color", "NO_COLOR": "", **environ}.items():
        monkeypatch.setenv(name, value)
    shown = written(lambda console: console.print("x", style="bold red"), force_terminal=True)
    assert ("\x1b" in shown) == (not environ)


@pytest.mark.parametrize(
    ("called", "on_path", "shown"),
    [
        ("bin/tidemill", False, "bin/tidemill"),
        ("bin/tidemill", True, "tidemill"),
        ("a folder/tidemill", False, "'a folder/tidemill'"),
        ("tidemill/__main__.py", False, f"{sys.executable} -m tidemill"),
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


def test_a_hint_is_for_uvx_where_uvx_runs(monkeypatch):
    """Its environment is on no later path."""
    monkeypatch.setenv("UV", "/usr/bin/uv")
    assert program() == "tidemill"
    monkeypatch.setattr(sys, "prefix", "/home/u/.cache/uv/archive-v0/ciV2tja7Z3iZhlRv")
    assert program() == "uvx tidemill"
