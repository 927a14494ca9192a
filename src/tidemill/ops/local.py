"""What a running `tidemill up` says of itself in its folder."""

from pathlib import Path

import msgspec


class _Running(msgspec.Struct, frozen=True):
    """What is read of `run.json`."""

    kafka: str | None = None


def kafka(data: Path) -> str | None:
    """The broker of the service of this folder, `host:port`; None where none runs."""
    try:
        return msgspec.json.decode((data / "run.json").read_bytes(), type=_Running).kafka
    except (OSError, msgspec.MsgspecError):
        return None
