"""An endpoint is one entry in a table: a batch runs on a new one through every stage."""

import json
import os
from functools import partial

import pytest
from openai import OpenAI
from support.backend import Backend, Behaviour
from support.stack import KEY, Stack
from support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

PATH = "/v1/mine"
ENTRY = f"""
from tidemill.schemas.endpoints import ENDPOINTS, Endpoint

ENDPOINTS["{PATH}"] = Endpoint(
    name="Mine", forms=({{"input": (str,)}},), reply_list="results", smallest={{"input": "x"}}, generates=False
)
"""
"""Python runs a module of this name in every process, before any other of its modules."""
MODULE = "sitecustomize.py"
OTHERS = ["/v1/moderations", "/v1/rerank", "/v1/classify"]
RANKED = {"results": [{"index": 0, "relevance_score": 0.9}], "usage": {"total_tokens": 7}}
CLASSIFIED = {"data": [{"index": 0, "label": "a"}], "usage": {"prompt_tokens": 5, "total_tokens": 5}}


@pytest.fixture
def extended(tmp_path):
    """An installation with one more entry, and its server, which has no verdict on the text `empty`."""
    (tmp_path / MODULE).write_text(ENTRY)

    def rule(body, nth):
        if "documents" in body:
            return Behaviour(status=529) if nth == 1 else Behaviour(body=json.dumps(RANKED).encode())
        if "labelled" in body["input"]:
            return Behaviour(body=json.dumps(CLASSIFIED).encode())
        verdicts = [] if body["input"] == "empty" else [{"flagged": False}]
        return Behaviour(body=json.dumps({"id": "modr-1", "results": verdicts}).encode())

    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    with Backend(rule) as backend:
        models = {"m": {**backend.models("m")["m"], "endpoints": [PATH, *OTHERS]}}
        with Stack(tmp_path / "data", models, {"PYTHONPATH": path}) as stack:
            yield stack, backend


async def end_of_a_batch(client, path, *bodies):
    """A batch of these bodies, once it has ended."""
    lines = [
        {"custom_id": f"{n}", "method": "POST", "url": path, "body": {"model": "m", **body}}
        for n, body in enumerate(bodies)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint=path, completion_window="24h")
    await until(lambda: client.batches.retrieve(made.id).status in {"completed", "failed"}, "the batch's end")
    return client.batches.retrieve(made.id)


async def test_batches_run_on_endpoints_that_a_model_names(extended):
    """Each line has the reply and the usage of its endpoint, at the server's path; a 529 is tried again."""
    stack, backend = extended
    client = OpenAI(base_url=stack.api, api_key=KEY)
    assert client.models.retrieve("m").model_extra["tidemill"]["endpoints"] == [PATH, *OTHERS]
    bodies = [{"input": "good"}, {"query": "tide", "documents": ["a", "b"]}, {"input": ["labelled"]}]
    for path, body, tokens in zip(OTHERS, bodies, (0, 7, 5), strict=True):
        batch = await end_of_a_batch(client, path, body)
        assert (batch.status, batch.request_counts.completed, batch.usage.input_tokens) == ("completed", 1, tokens)
    assert backend.paths == {"/v1/moderations": 1, "/v1/rerank": 2, "/classify": 1}


async def test_a_batch_runs_on_an_endpoint_that_was_added(extended):
    """Its paths, its required field and its good replies are known to the api, ingest, processors and results."""
    stack, backend = extended
    client = OpenAI(base_url=stack.api, api_key=KEY)
    ended = partial(end_of_a_batch, client, PATH)
    batch = await ended({"input": "good"}, {"input": "fine"})
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 2, 0)
    results = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert [line["custom_id"] for line in results] == ["0", "1"]
    assert all(line["response"]["body"]["results"] == [{"flagged": False}] for line in results)
    assert backend.paths == {PATH: 2}
    batch = await ended({"prompt": "in a field of another endpoint"})
    assert batch.status == "failed"
    assert batch.errors.data[0].param == "body.input"
    batch = await ended({"input": "good"}, {"input": "empty"})
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
    (error,) = client.files.content(batch.error_file_id).text.splitlines()
    assert "no results" in error
