"""Inputs that are deleted while ingest has yet to finish with their batch."""

import json
from collections import Counter

import pytest
from support.file_stage import NOW, Here, created, input_lines

from tidemill.configuration.projects import Limits
from tidemill.ingest.files import stage as module
from tidemill.ingest.files.imports import Importer
from tidemill.ingest.files.wait_report import WaitReport
from tidemill.schemas.buckets import BucketObject
from tidemill.sealing.vault import NoKey
from tidemill.storage.directory import DirectoryStore


@pytest.mark.parametrize("models", [("m",), ("m", "n", "n")])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_batch_whose_input_is_deleted_after_its_check_ends(tmp_path, monkeypatch, models, fails):
    """Every line gets an error line, also if the log failed in between: the verdict that it has stays."""
    here = Here(DirectoryStore(tmp_path), limits=Limits(models_per_batch_max=2))
    command = await here.batch("batch_1", input_lines(3_000, *models))
    publish, send, counted = here.requests.publish, here.requests.send_fact, Counter()

    async def sent(fact) -> None:
        await send(fact)
        await here.store.delete("files/batch_1")

    async def published(records) -> None:
        if fails and not counted["m"]:
            counted["m"] += 1
            raise ConnectionError
        await publish(records)

    async def refused(_, marks, value, *, model) -> None:
        counted[model] += len(marks)
        here.requests.refused |= dict(zip((mark.index for mark in marks), value.splitlines(), strict=True))

    monkeypatch.setattr(here.requests, "send_fact", sent)
    monkeypatch.setattr(here.requests, "publish", published)
    monkeypatch.setattr(here.requests, "refuse", refused)
    monkeypatch.setattr(module, "pause_seconds", lambda _: 0)
    await here.stage.handle(command)
    (accepted,) = here.requests.facts
    assert (accepted.total, here.requests.records) == (3_000, [])
    assert here.requests.refused.keys() == set(range(3_000))
    line = json.loads(here.requests.refused[2_999])
    assert (line["custom_id"], line["error"]["code"]) == (None, "input_gone")
    assert counted == Counter({"m": 3_000} if len(models) == 1 else {"m": 1_000, "n": 2_000}) + Counter(
        m=int(fails)
    )


class Deleted:
    """The log and the quotas of a process that knows that a batch is deleted."""

    def has_lines(self, _) -> bool:
        """`tidemill.batches` does not have the batch any more."""
        return False

    async def begin(self, batch_id: str, _) -> None:
        """It gets no key."""
        raise NoKey(batch_id)

    async def caught_up(self) -> None:
        """The log is read."""


async def test_the_input_of_a_deleted_batch_is_not_copied_again(tmp_path):
    """Ingest had died before it acknowledged the command; the file would come back."""
    log, store = Deleted(), DirectoryStore(tmp_path)
    importer = Importer(None, store, sender=log, requests=log, room=log, caught_up=log.caught_up)
    command = created("batch_1", "files/x", 1)
    source = BucketObject(uri="s3://lake/x", etag="e", bytes=1)
    command = command.model_copy(update={"input": command.input.model_copy(update={"source": source})})
    report = WaitReport("batch_1", log, lambda: NOW)
    failed = await importer.run(importer.of(command, report), 60, lambda: None)
    (error,) = failed.errors
    assert (error.code, error.message) == ("input_unavailable", "s3://lake/x: the batch was deleted.")
    assert not [key async for key in store.keys("files/")]
