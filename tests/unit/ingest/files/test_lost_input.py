"""An input that is deleted between its check and its publication."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest

from tidemill.configuration.projects import Limits
from tidemill.ingest.files import stage as module
from tidemill.storage.directory import DirectoryStore

_SPEC = importlib.util.spec_from_file_location("stage_of_files", Path(__file__).parent / "test_stage.py")
cases = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(cases)


@pytest.mark.parametrize("models", [("m",), ("m", "n", "n")])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_batch_whose_input_is_deleted_after_its_check_ends(tmp_path, monkeypatch, models, fails):
    """Every line gets an error line, also if the log failed in between: the verdict that it has stays."""
    here = cases.Here(DirectoryStore(tmp_path), limits=Limits(models_per_batch_max=2))
    command = await here.batch("batch_1", cases.input_lines(3_000, *models))
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
