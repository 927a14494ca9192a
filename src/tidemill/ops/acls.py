"""`tidemill acls`: shows or sets the Kafka ACLs of each role."""

import shlex
from collections.abc import Mapping

from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import ensure_topics, set_acls
from tidemill.ops import Say
from tidemill.schemas.log import acls
from tidemill.schemas.log.acls import Acl


def show(say: Say, users: Mapping[str, str]) -> None:
    """Print the arguments of `kafka-acls.sh --add`, one line for each user and resource."""
    for acl in _merged(acls.acls()):
        say(_line(acl, users))


async def apply(settings: Settings, say: Say, users: Mapping[str, str]) -> None:
    """Create missing topics and set the ACLs, with an administrator's credentials.

    Raises:
        TopicError: The broker is unreachable, or refuses.
    """
    kafka = settings.cluster
    await ensure_topics(settings, kafka)
    count = await set_acls(kafka, acls.acls(), users)
    say(f"All topics exist, and {count} ACLs are set.")


def _merged(found: list[Acl]) -> list[tuple[Acl, list[str]]]:
    """The ACLs, with the operations on one resource together."""
    together: dict[tuple[str, int, str, bool], tuple[Acl, list[str]]] = {}
    for acl in found:
        key = (acl.role, acl.resource, acl.name, acl.is_prefix)
        together.setdefault(key, (acl, []))[1].append(acl.operation.name.title().replace("_", ""))
    return list(together.values())


def _line(found: tuple[Acl, list[str]], users: Mapping[str, str]) -> str:
    acl, operations = found
    what = "--cluster" if acl.resource is acls.Resource.CLUSTER else f"--{acl.resource.name.lower()} {acl.name}"
    pattern = " --resource-pattern-type prefixed" if acl.is_prefix else ""
    may = " ".join(f"--operation {operation}" for operation in operations)
    principal = shlex.quote(f"User:{users.get(acl.role, acls.user(acl.role))}")
    return f"--allow-principal {principal} {may} {what}{pattern}"
