"""The Kafka ACLs of each role, derived from the table of topics.

A role is a stage, `producers` (direct producers of `tidemill.intake`), or `operator` (the commands `dead`,
`rebuild`, `doctor`). An administrator creates topics and ACLs; no role may create, alter or delete anything,
except that ingest creates the topics of a model before its first line.

Kafka lets a principal with read or write access describe the topic, and one with write access to any topic be an
idempotent producer; so neither needs an ACL.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from tidemill.schemas.log.topics import (
    EXPRESS_PREFIX,
    REQUESTS_PREFIX,
    TOPICS,
    Topic,
    express,
    is_of_requests,
    requests,
)

STAGES: Final = ("api", "ingest", "processors", "results", "webhooks")
INGEST: Final = "ingest"
PRODUCERS: Final = "producers"
OPERATOR: Final = "operator"
ROLES: Final = (*STAGES, PRODUCERS, OPERATOR)
ADMIN: Final = "admin"
"""Creates topics and ACLs; not a role."""
GROUPS: Final = {
    "ingest": ("tidemill-ingest", "tidemill-intake"),
    "processors": ("tidemill-processors",),
    "results": ("tidemill-results",),
    "webhooks": ("tidemill-webhooks",),
}
"""The consumer groups of a stage."""
_LOOKS_AT_DISKS: Final = ("api", "ingest", "processors")
"""Roles that ask the brokers for the free space of their disks."""
_LOOKS_AT_RETENTION: Final = ("ingest", "processors", "results", "webhooks")


class Resource(IntEnum):
    """Kafka's number of a resource type."""

    TOPIC = 2
    GROUP = 3
    CLUSTER = 4


class Operation(IntEnum):
    """Kafka's number of an operation."""

    READ = 3
    WRITE = 4
    CREATE = 5
    DESCRIBE = 8
    DESCRIBE_CONFIGS = 10


@dataclass(frozen=True, kw_only=True, order=True)
class Acl:
    """Allows a role one operation on one resource, or on all with a prefix."""

    role: str
    resource: Resource
    name: str
    is_prefix: bool = False
    operation: Operation


def user(role: str) -> str:
    """The default user of a role: `tidemill-api`."""
    return f"tidemill-{role}"


def rows() -> tuple[Topic, ...]:
    """The table of topics, with those of one model for all models."""
    return (*TOPICS, requests("*"), express("*"))


def acls(roles: Iterable[str] = ROLES) -> list[Acl]:
    """All ACLs of these roles, in the order of roles and topics."""
    return [acl for role in roles for acl in (*_of_topics(role), *_of_groups(role), *_of_cluster(role))]


def _of_topics(role: str) -> Iterable[Acl]:
    for row in rows():
        may = {
            Operation.READ: role in row.read_by,
            Operation.WRITE: role in row.written_by,
            Operation.DESCRIBE: role == OPERATOR and not row.concerns(role),
            Operation.CREATE: role == INGEST and is_of_requests(row.name),
            # The stages compare the retention of these topics with what batches need.
            Operation.DESCRIBE_CONFIGS: role == OPERATOR or (role in _LOOKS_AT_RETENTION and row.is_needed),
        }
        for operation, is_needed in may.items():
            if is_needed:
                name, is_prefix = _pattern(row)
                yield Acl(role=role, resource=Resource.TOPIC, name=name, is_prefix=is_prefix, operation=operation)


def _of_groups(role: str) -> Iterable[Acl]:
    for name in GROUPS.get(role, ()):
        yield Acl(
            role=role,
            resource=Resource.GROUP,
            name=name,
            operation=Operation.READ,
        )


def _of_cluster(role: str) -> Iterable[Acl]:
    if role in _LOOKS_AT_DISKS:
        yield Acl(role=role, resource=Resource.CLUSTER, name="kafka-cluster", operation=Operation.DESCRIBE)


def _pattern(row: Topic) -> tuple[str, bool]:
    if not is_of_requests(row.name):
        return row.name, False
    return (EXPRESS_PREFIX if row.name.startswith(EXPRESS_PREFIX) else REQUESTS_PREFIX), True
