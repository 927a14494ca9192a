"""`tidemill acls`: the access lists that each role needs, shown or set."""

import shlex
from collections.abc import Callable, Mapping

from tidemill.configuration.security import Kafka
from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import ensure_topics, set_acls
from tidemill.schemas.log import acls
from tidemill.schemas.log.acls import Acl

Say = Callable[[str], None]


def show(say: Say, users: Mapping[str, str]) -> None:
    """Print a line for each resource of each user, as arguments of `kafka-acls.sh --add`."""
    for acl in _merged(acls.acls()):
        say(_line(acl, users))


async def apply(settings: Settings, where: Kafka, say: Say, users: Mapping[str, str]) -> None:
    """Make the topics that are missing, and set the lists; both need an administrator's way in.

    Raises:
        TopicError: The broker is out of reach, or refuses.
    """
    await ensure_topics(settings, where)
    count = await set_acls(where, acls.acls(), users)
    say(f"All topics are there, and {count} access lists.")


def _merged(found: list[Acl]) -> list[tuple[Acl, list[str]]]:
    """The lists with the operations of one resource together."""
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
