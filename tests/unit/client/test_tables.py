"""Tables of the client."""

from rich.table import Table

from tidemill.client import tables


def test_nothing_is_cut(capsys, monkeypatch):
    """Neither on a narrow terminal nor in a file."""
    monkeypatch.setenv("COLUMNS", "20")
    table = Table("batch", "cost_total", box=None)
    table.add_row("batch_0123456789abcdef0123456789abcdef", "0.2529035")
    tables.show(table)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["batch", "cost_total"], ["batch_0123456789abcdef0123456789abcdef", "0.2529035"]]
