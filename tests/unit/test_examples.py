"""The examples are what the README says they are."""

import json
from pathlib import Path

import pytest

from tidemill.client.batches import verify
from tidemill.client.errors import Exit
from tidemill.client.runs.paths import endpoint_of
from tidemill.local import demo
from tidemill.terminal import stderr_console

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "endpoint", "model"),
    [
        ("embed-docs.jsonl", "/v1/embeddings", demo.EMBEDDING_MODEL),
        ("classify-docs.jsonl", "/v1/chat/completions", demo.CHAT_MODEL),
    ],
)
def test_an_example_is_for_the_models_of_the_demo(name: str, endpoint: str, model: str) -> None:
    """Each line can run where nothing has been configured."""
    path = EXAMPLES / name
    assert endpoint_of(path) == endpoint
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert {(line["url"], line["method"], line["body"]["model"]) for line in lines} == {(endpoint, "POST", model)}
    # An input that is taken for its own output reconciles if, and only if, every id is there once.
    assert verify(stderr_console(), path, path, None) is Exit.OK


def test_the_mistakes_are_in_the_example_of_mistakes() -> None:
    """The first line is well, so that the file is uploaded; others are not."""
    path = EXAMPLES / "with-mistakes.jsonl"
    assert endpoint_of(path) == "/v1/embeddings"
    assert verify(stderr_console(), path, path, None) is Exit.INEXACT
