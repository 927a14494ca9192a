"""A batch that ingest cannot check or publish yet says what it waits for."""

import pytest
from support.file_stage import Here, input_lines

from tidemill import retrying
from tidemill.ingest.files.imports import Importer
from tidemill.schemas.buckets import BucketObject
from tidemill.schemas.log.messages import Accepted, Stalled
from tidemill.schemas.resources.waiting import Reason
from tidemill.sealing.wrapping import KeyUnavailable
from tidemill.storage.directory import DirectoryStore


class Room:
    """The quotas of a project without limits."""

    def has_lines(self, _) -> bool:
        return False

    def claim_input(self, *_) -> None: ...

    def release_input(self, *_) -> None: ...

    def check_lines(self, *_) -> None: ...


@pytest.mark.parametrize("call", ["import", "schema", "copies", "publish"])
@pytest.mark.parametrize("is_log_away", [False, True])
async def test_a_batch_that_waits_for_its_key_says_so(tmp_path, monkeypatch, call, is_log_away):
    """Neither its bucket nor its store is at fault. The batch goes on once the key is there, reported or not."""
    monkeypatch.setattr(retrying, "LONGEST_SECONDS", 0.01)
    here = Here(DirectoryStore(tmp_path))
    requests, data = here.requests, input_lines(3)
    command = await here.batch("batch_1", data)
    if call == "import":
        here.stage._importer = Importer(
            None,
            here.store,
            sender=_Log(),
            requests=requests,
            room=Room(),
            caught_up=_done,
        )
        source = BucketObject(uri="s3://lake/x", etag="e", bytes=len(data))
        command = command.model_copy(update={"input": command.input.model_copy(update={"source": source})})
    elif call == "schema":
        command = command.model_copy(update={"answer_schema": "{}"})
    elif call == "copies":
        extras = command.batch.tidemill.model_copy(update={"dedupe": "batch"})
        command = command.model_copy(update={"batch": command.batch.model_copy(update={"tidemill": extras})})
    name = "publish" if call == "publish" else "begin"
    whole, left = getattr(requests, name), iter(range(3))

    async def failing(*given):
        if next(left, None) is not None:
            requests.failures = int(is_log_away)
            raise KeyUnavailable("the key file does not have the key k")
        await whole(*given)

    monkeypatch.setattr(requests, name, failing)
    await here.stage.handle(command)
    assert requests.lines("batch_1") == data
    assert sum(isinstance(fact, Accepted) for fact in requests.facts) == 1
    waits = [fact for fact in requests.facts if isinstance(fact, Stalled)]
    if is_log_away:
        assert all(fact.waiting == () for fact in waits)
        return
    numbers = [fact.number for fact in waits]
    assert numbers == list(range(numbers[0], numbers[0] + 4))
    for fact in waits[:3]:
        (wait,) = fact.waiting
        assert wait.reason is Reason.KEY
        assert wait.message == "The key of the batch is unavailable: the key file does not have the key k."
    assert waits[3].waiting == ()


async def _done() -> None:
    """The quotas are known."""


class _Log:
    async def send(self, *_, **__) -> int:
        return 0


async def test_a_report_ends_when_lines_are_published(tmp_path, monkeypatch):
    """A large batch takes minutes, and no longer waits for its key."""
    monkeypatch.setattr(retrying, "LONGEST_SECONDS", 0.01)
    here = Here(DirectoryStore(tmp_path))
    requests = here.requests
    command = await here.batch("batch_1", input_lines(3))
    whole, seen = requests.publish, []

    async def publish(records):
        if not seen:
            seen.append("unavailable")
            raise KeyUnavailable("the key file does not have the key k")

        async def watched():
            async for record in records:
                yield record
            seen.append([fact.waiting for fact in requests.facts if isinstance(fact, Stalled)][-1])

        await whole(watched())

    monkeypatch.setattr(requests, "publish", publish)
    await here.stage.handle(command)
    assert seen == ["unavailable", ()]
