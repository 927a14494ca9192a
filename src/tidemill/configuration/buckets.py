"""The address of the store; connections to buckets of users, and the prefixes in them that projects may use."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from tidemill import credentials
from tidemill.configuration.misconfigured import Table
from tidemill.configuration.security import VariableName
from tidemill.configuration.servers import ServerName, ServerUrl
from tidemill.schemas import buckets
from tidemill.schemas.bounds import NAME_CHARS_MAX, Word
from tidemill.schemas.buckets import Address, AddressError, Uri
from tidemill.schemas.resources import access

CONNECTIONS_MAX: Final = 100
PREFIXES_MAX: Final = 100


def _check_store(store: str) -> str:
    parts = urlsplit(store)
    if "@" in parts.netloc:
        raise ValueError(
            "the address must not contain a password: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    is_folder = parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/")
    if not (is_folder or (parts.scheme == "s3" and parts.netloc)):
        raise ValueError("expected file:///dir or s3://bucket/prefix")
    return store


StoreUrl = Annotated[str, AfterValidator(_check_store)]
"""`file:///dir` or `s3://bucket/prefix`."""


def _check_prefix(text: str) -> str:
    try:
        buckets.parse_folder(text)
    except AddressError as error:
        raise ValueError(f"{text}: {error}") from None
    return text


Prefixes = Annotated[tuple[Annotated[Uri, AfterValidator(_check_prefix)], ...], Field(max_length=PREFIXES_MAX)]
"""Folders like `s3://bucket/folder/`; an address belongs to one by whole parts between slashes."""


class BucketAccess(Table):
    """What one project may do through a connection."""

    read: Prefixes = ()
    """Folders whose objects may be inputs of batches, like `s3://lake/requests/`."""
    write: Prefixes = ()
    """Folders that batches may name in `output_uri`."""


class Bucket(Table):
    """A connection to an S3 server, and who may use which folders there."""

    endpoint: ServerUrl | None = None
    """Address of the server; by default that of the variables `AWS_…`, else Amazon's."""
    region: Word | None = None
    """Region; by default that of the variables `AWS_…`."""
    access_key_id: Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)] | None = None
    """Id of the access key; without it, the variables `AWS_…` or the role of the machine count."""
    secret_access_key_env: VariableName | None = None
    """Environment variable with the secret of that key."""
    secret_access_key_file: Path | None = None
    """File with the secret, such as a mounted one; read when the process first uses the connection."""
    projects: Annotated[dict[Annotated[str, Field(pattern=access.PROJECT)], BucketAccess], Field(min_length=1)]
    """The folders of each project; a project that is not listed may use none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.secret_access_key_env and self.secret_access_key_file:
            raise ValueError("secret_access_key_env and secret_access_key_file are both set; keep one")
        has_secret = self.secret_access_key_env or self.secret_access_key_file
        if bool(self.access_key_id) != bool(has_secret):
            raise ValueError(
                "access_key_id needs secret_access_key_env or secret_access_key_file, and they need it"
            )
        return self

    @property
    def secret(self) -> str | None:
        """The secret of the access key, read at each call; None without an access key.

        Raises:
            SecretError: The variable or the file of this process does not have one.
        """
        if self.secret_access_key_file is not None:
            return credentials.of_file(self.secret_access_key_file)
        return credentials.of_variable(self.secret_access_key_env) if self.secret_access_key_env else None

    def folders(self, project: str, *, writes: bool) -> Iterator[Address]:
        """The folders that a project may read from, or write to."""
        if (found := self.projects.get(project)) is not None:
            yield from map(buckets.parse_folder, found.write if writes else found.read)


def _check_unique(connections: dict[str, Bucket]) -> dict[str, Bucket]:
    """Refuse two connections for one folder of a project: addresses do not say which one they mean."""
    known: dict[tuple[str, bool, Address], str] = {}
    for name, connection in connections.items():
        for project in connection.projects:
            for writes in (False, True):
                for folder in set(connection.folders(project, writes=writes)):
                    other = known.setdefault((project, writes, folder), name)
                    if other != name:
                        raise ValueError(
                            f"{other} and {name} both have {folder} for the project {project}; keep one"
                        )
    return connections


Buckets = Annotated[dict[ServerName, Bucket], Field(max_length=CONNECTIONS_MAX), AfterValidator(_check_unique)]
