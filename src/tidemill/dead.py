"""Dead letters: a record that nobody can read is kept where an operator finds it, with the reason."""

import logging
from typing import Any, Protocol

from tidemill.schemas import topics
from tidemill.schemas.codec import Headers

log = logging.getLogger(__name__)


class Sender(Protocol):
    """The log, as far as it is needed here."""

    async def send(self, topic: str, key: str, value: bytes | None, *, headers: Headers = ...) -> int:
        """Append a record."""
        ...


async def bury(sender: Sender, message: Any, *, stage: str, reason: Exception) -> None:
    """Send a record to `tidemill.dead`.

    Args:
        sender: The log.
        message: The record as Faust hands it over.
        stage: Who could not read it.
        reason: Why.

    Raises:
        OSError: The log did not take it.
    """
    source = f"{message.topic}/{message.partition}/{message.offset}"
    headers = [
        *(message.headers or ()),
        ("tidemill-dead-stage", stage.encode()),
        ("tidemill-dead-source", source.encode()),
        ("tidemill-dead-reason", str(reason).encode()[:1000]),
    ]
    await sender.send(topics.DEAD.name, source, message.value, headers=headers)
    log.warning("%s could not read %s: %s", stage, source, reason)
