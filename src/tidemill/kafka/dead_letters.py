"""Dead letters: stages keep records that they cannot read for an operator, with the reason."""

import functools
import logging
from typing import Any

from tidemill import metrics
from tidemill.retrying import retried
from tidemill.schemas.log import dead_letters, topics
from tidemill.schemas.ports import Sender

log = logging.getLogger(__name__)


async def bury(sender: Sender, message: Any, *, stage: str, reason: Exception) -> None:
    """Send a record to `tidemill.dead`, again and again until the log has it.

    Without the log there is nothing else to do for who reads from it, so there is no other bound.

    Args:
        sender: The log.
        message: The record as Faust hands it over.
        stage: Who could not read it.
        reason: Why; its text goes into the letter and into the process's log, so it quotes no user.
    """
    source = f"{message.topic}/{message.partition}/{message.offset}"
    said = dead_letters.headers(source, message.headers or (), key=message.key, stage=stage, reason=str(reason))
    value = message.value
    if value is not None and len(value) > dead_letters.VALUE_BYTES_MAX:
        said = [*said, (dead_letters.CUT, b"%d" % len(value))]
        value = None
    send = functools.partial(sender.send, topics.DEAD.name, source, value, headers=said)
    await retried("sending a dead letter", send)
    metrics.DEAD_LETTERS.labels(stage).inc()
    log.warning("%s could not read %s: %s", stage, source, reason)
