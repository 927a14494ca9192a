"""Checks the answers of a batch against the JSON Schema that its client gave.

Compiled schemas are kept in memory; the store has the text of each. A check holds the interpreter's lock. So an
answer whose check could take longer than some hundredths of a second is refused, and a check of more than some
milliseconds runs in a thread that rests as long as it works. One thread checks at a time, and the batches take
turns.
"""

import asyncio
from collections.abc import Iterator
from typing import Final

import orjson

from tidemill.bounded_dict import BoundedDict
from tidemill.runtime.threads import run_half_time
from tidemill.schemas.endpoints import TEXTS, texts
from tidemill.schemas.json_schema import ANSWER_BYTES_MAX, AnswerError, Checker
from tidemill.schemas.jsonl import nesting
from tidemill.schemas.log.part import schema_key
from tidemill.schemas.ports import Store, read_all

CHECKS_MAX: Final = 50_000
"""Parts of a schema that apply to all values of an answer: about a twentieth of a second."""
SMALL_CHECKS_MAX: Final = 2_000
SMALL_BYTES_MAX: Final = 64 << 10
"""Larger replies are parsed in a thread."""
REPLY_BYTES_MAX: Final = 2 * ANSWER_BYTES_MAX
"""A reply escapes the text, and has other fields."""
BATCHES_MAX: Final = 256
"""Batches whose schemas are kept compiled; lines in flight keep those that they need."""
READ_SECONDS_MAX: Final = 10.0
"""How long the store may take for a schema."""
LARGE_ANSWERS_MAX: Final = 256
"""Large answers that may wait for their check without a seat; further ones keep their seats."""


class AnswerCheck:
    """The schema of one batch."""

    def __init__(self, checker: Checker) -> None:
        """Check answers with a compiled schema."""
        self._checker = checker
        self.turn = asyncio.Lock()
        """Held by the large answer of the batch that is checked next."""

    def is_small(self, body: bytes) -> bool:
        """Whether a check of a reply may run on the event loop."""
        # An upper bound on the values: it also counts characters inside strings.
        values = body.count(b",") + body.count(b"[") + body.count(b"{")
        return len(body) <= SMALL_BYTES_MAX and values * self._checker.applied <= SMALL_CHECKS_MAX

    def fault(self, url: str, body: bytes) -> str | None:
        """Why the answer in a reply does not fit the schema; None if it fits."""
        if len(body) > REPLY_BYTES_MAX:
            return f"it has more than {REPLY_BYTES_MAX:,} bytes"
        answers = [answer.encode() for answer in _answers(body, url)]
        if not answers or not all(answers):
            return "it has no text"
        for answer in answers:
            if (nesting.parts(answer) + 1) * self._checker.applied * len(answers) > CHECKS_MAX:
                return "it has more values than can be checked against this schema"
            try:
                self._checker.check(answer)
            except AnswerError as error:
                return str(error)
        return None


class AnswerChecks:
    """The schemas of batches."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: BoundedDict[str, AnswerCheck] = BoundedDict(BATCHES_MAX)
        self._learning: dict[str, asyncio.Task[AnswerCheck]] = {}
        self._turn = asyncio.Lock()
        self.room = asyncio.Semaphore(LARGE_ANSWERS_MAX)
        """Held while an answer without a seat waits for its check."""

    def known(self, batch_id: str) -> AnswerCheck | None:
        """The check of a batch, if it is in memory."""
        return self._known.use(batch_id)

    async def learn(self, batch_id: str) -> AnswerCheck:
        """Get the check of a batch, if need be from the store; several callers share one read.

        Raises:
            NotFound: The store does not have the schema.
            OSError: The store does not answer in time.
        """
        if (found := self.known(batch_id)) is not None:
            return found
        if (task := self._learning.get(batch_id)) is None:
            task = self._learning[batch_id] = asyncio.create_task(self._learn(batch_id))
            task.add_done_callback(lambda ended: self._learnt(batch_id, ended))
        return await asyncio.shield(task)

    async def fault(self, check: AnswerCheck, url: str, body: bytes) -> str | None:
        """Why the answer in a reply does not fit the schema; a large one is checked in a thread."""
        if check.is_small(body):
            return check.fault(url, body)
        # A batch has one answer in the queue, so it does not hold up the answers of others.
        async with check.turn, self._turn:
            return await run_half_time(check.fault, url, body)

    async def _learn(self, batch_id: str) -> AnswerCheck:
        async with asyncio.timeout(READ_SECONDS_MAX):
            text = await read_all(self._store.read(schema_key(batch_id)))
        found = self._known[batch_id] = AnswerCheck(await run_half_time(_compiled, text))
        return found

    def _learnt(self, batch_id: str, task: asyncio.Task[AnswerCheck]) -> None:
        del self._learning[batch_id]
        if not task.cancelled():
            task.exception()  # waiters get it from the task; there may be none left


def _compiled(text: bytes) -> Checker:
    return Checker(orjson.loads(text))


def _answers(body: bytes, url: str) -> Iterator[str]:
    """The texts that the model wrote: one for each choice, else one."""
    if nesting.exceeds(body, nesting.DEPTH_MAX):
        return
    try:
        reply = orjson.loads(body)
    except orjson.JSONDecodeError:
        return
    if (path := TEXTS.get(url)) is None or not isinstance(reply, dict):
        return
    first, *rest = path
    found = reply.get(first)
    for each in found if first == "choices" and isinstance(found, list) else [found]:
        yield "".join(texts(each, rest))
