"""Reads the `run.json` of a running `tidemill up`, and finds the credentials for its Kafka."""

from pathlib import Path

import msgspec

from tidemill import ownership
from tidemill.configuration.security import Cluster, Security
from tidemill.schemas import UNREADABLE
from tidemill.schemas.log import acls


class RunFile(msgspec.Struct, frozen=True):
    """The content of `run.json` that commands use."""

    api: str | None = None
    kafka: str | None = None
    users: str | None = None
    """The folder with the passwords of its own broker; None if it uses an external Kafka."""


def read(data: Path) -> RunFile | None:
    """The run file of the service of this folder; None if no service runs, or another user may have written it.

    A command sends its key to the address in this file, and every user may create files in a folder like `/tmp`.
    """
    file = data / "run.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=RunFile) if ownership.is_trusted(file) else None
    except (OSError, *UNREADABLE):
        return None


def cluster(data: Path, role: str, otherwise: Security) -> Cluster | None:
    """The Kafka of the service of this folder; None if no service runs.

    `otherwise` has the credentials for an external Kafka; for its own broker they are those of the role.
    """
    if (running := read(data)) is None or running.kafka is None:
        return None
    if running.users is None:
        return Cluster(servers=running.kafka, security=otherwise)
    return Cluster(servers=running.kafka, security=security(Path(running.users), role))


def security(users: Path, role: str) -> Security:
    """The credentials of a role for an embedded broker, from the folder with the password file of each user."""
    name = acls.user(role)
    # A missing file is reported at the connection.
    return Security.model_construct(
        protocol="SASL_PLAINTEXT", sasl_mechanism="SCRAM-SHA-512", username=name, password_file=users / name
    )
