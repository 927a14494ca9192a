"""What a running `tidemill up` says in the `run.json` of its folder, and how commands get into its Kafka."""

from pathlib import Path
from typing import Any

import msgspec

from tidemill.configuration.security import Cluster, Security
from tidemill.schemas.log import acls
from tidemill.storage import ownership


class RunFile(msgspec.Struct, frozen=True):
    """What is read of `run.json`."""

    api: str | None = None
    kafka: str | None = None
    users: str | None = None
    """The folder of the passwords to its own broker; None where it uses a Kafka that others run."""
    models: dict[str, Any] = {}
    """The models of the demo, as in `tidemill.toml`, where they are served for want of others."""


def read(data: Path) -> RunFile | None:
    """What the service of this folder says; None where none runs, or another user could have said it.

    A command shows its key to the address that it finds here, and in a folder like `/tmp` anybody may make one.
    """
    file = data / "run.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=RunFile) if ownership.is_trusted(file) else None
    except (OSError, msgspec.MsgspecError):
        return None


def cluster(data: Path, role: str, otherwise: Security) -> Cluster | None:
    """The Kafka of the service of this folder; None where none runs.

    Args:
        data: The folder.
        role: Whose rights are asked for, where it is the service's own broker.
        otherwise: How to get into a Kafka that others run.
    """
    if (running := read(data)) is None or running.kafka is None:
        return None
    if running.users is None:
        return Cluster(servers=running.kafka, security=otherwise)
    return Cluster(servers=running.kafka, security=security(Path(running.users), role))


def security(users: Path, role: str) -> Security:
    """How a role gets into an embedded broker.

    Args:
        users: The folder with a file for each user, which holds the password.
        role: One of `acls.ROLES`, or `acls.ADMIN`.
    """
    name = acls.user(role)
    # A file that is gone is told by who connects.
    return Security.model_construct(
        protocol="SASL_PLAINTEXT", sasl_mechanism="SCRAM-SHA-512", username=name, password_file=users / name
    )
