"""Tables in, tables out: reads rows, makes requests of them, reads the answers, writes typed columns.

It needs the libraries of the extra `tidemill[data]`, and imports nothing of the service's client.
"""


class TableError(Exception):
    """A table, a template, a schema or a file is unusable; the text says why."""


class RowError(Exception):
    """One row cannot be asked, or its answer is unusable; the text says why."""
