"""An endpoint is one entry in a table: a batch runs on a new one through every stage."""

import json
import os

import pytest
from openai import OpenAI
from support.backend import Backend, Behaviour
from support.stack import KEY, Stack
from support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

PATH = "/v1/moderations"
ENTRY = f"""
from tidemill.schemas.endpoints import ENDPOINTS, Endpoint

ENDPOINTS["{PATH}"] = Endpoint(
    name="Moderations", prompt="input", reply_list="results", smallest={{"input": "x"}}, generates=False
)
"""
"""Python runs a module of this name in every process, before any other of its modules."""
MODULE = "sitecustomize.py"


@pytest.fixture
def extended(tmp_path):
    """An installation with one more entry, and its server, which has no verdict on the text `empty`."""
    (tmp_path / MODULE).write_text(ENTRY)

    def rule(body, _nth):
        verdicts = [] if body["input"] == "empty" else [{"flagged": False}]
        return Behaviour(body=json.dumps({"id": "modr-1", "results": verdicts}).encode())

    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    with Backend(rule) as backend:
        models = {"m": {**backend.models("m")["m"], "endpoints": [PATH]}}
        with Stack(tmp_path / "data", models, {"PYTHONPATH": path}) as stack:
            yield stack, backend


async def test_a_batch_runs_on_an_endpoint_that_was_added(extended):
    """Its paths, its required field and its good replies are known to the api, ingest, processors and results."""
    stack, backend = extended
    client = OpenAI(base_url=stack.api, api_key=KEY)

    async def ended(*bodies):
        lines = [
            {"custom_id": f"{n}", "method": "POST", "url": PATH, "body": {"model": "m", **body}}
            for n, body in enumerate(bodies)
        ]
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        made = client.batches.create(input_file_id=file.id, endpoint=PATH, completion_window="24h")
        await until(lambda: client.batches.retrieve(made.id).status in {"completed", "failed"}, "the batch's end")
        return client.batches.retrieve(made.id)

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
