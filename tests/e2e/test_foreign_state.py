"""The state of a data folder and its log do not match: after a restore, or a move of half an installation."""

import shutil

import pytest
from openai import OpenAI
from support.batches import check_numbered, ended, numbered, refusing
from support.stack import KEY, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

LINES = 20


def run(stack):
    """A batch that ends well."""
    client = OpenAI(base_url=stack.api, api_key=KEY, max_retries=0)
    source = client.files.create(file=("in.jsonl", b"".join(numbered(0, LINES))), purpose="batch")
    batch = client.batches.create(
        input_file_id=source.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    over = ended(client, batch.id)
    check_numbered(client, over, 0, LINES)
    return over.id


def put(source, target):
    """Put a folder in the place of another one."""
    shutil.rmtree(target)
    shutil.copytree(source, target)


def said(stack, words):
    """Whether results or ingest said these words."""
    return any(words in (stack.data / "logs" / f"{name}.log").read_text() for name in ("results", "ingest"))


def test_state_that_is_newer_than_the_log(tmp_path, backend):
    """Kafka comes from yesterday's copy: the stages rebuild their tables, and go on."""
    backend.reset(refusing)
    with Stack(tmp_path / "own", backend.models("chat")) as own:
        first = run(own)
        own.stop()
        shutil.copytree(own.data / "kafka", tmp_path / "yesterday")
        own.start()
        run(own)
        own.stop()
        put(tmp_path / "yesterday", own.data / "kafka")
        own.start()
        client = OpenAI(base_url=own.api, api_key=KEY)
        assert client.batches.retrieve(first).status == "completed"
        run(own)
        assert said(own, "are newer than the log")
        assert not own.ends()


def test_state_of_another_log(tmp_path, backend):
    """It has rows of other batches, up to an offset that this log has too."""
    backend.reset(refusing)
    models = backend.models("chat")
    with Stack(tmp_path / "other", models) as other:
        run(other)
    with Stack(tmp_path / "own", models) as own:
        first, _ = run(own), run(own)
        own.stop()
        put(other.data / "state", own.data / "state")
        own.start()
        run(own)
        client = OpenAI(base_url=own.api, api_key=KEY)
        assert client.batches.retrieve(first).status == "completed"
        assert said(own, "belong to another log")
        assert not own.ends()
