"""The files of a test's folder."""

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put(path: Path, content: bytes) -> Path:
    """Write a file; returns its path."""
    path.write_bytes(content)
    return path
