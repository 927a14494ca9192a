"""The libraries of the extra `data`."""

from importlib.util import find_spec

from tidemill.tables import TableError

LIBRARIES = ("jinja2", "PIL", "pyarrow", "pypdfium2")


def check_libraries() -> None:
    """Check that they are installed.

    Raises:
        TableError: One is missing.
    """
    if missing := [library for library in LIBRARIES if find_spec(library) is None]:
        raise TableError(
            f"tables need more libraries ({', '.join(missing)}): `pip install 'tidemill[data]'` installs them"
        )
