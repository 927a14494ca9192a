"""Additions to each call: the client's headers, the deadline as a priority and as a header, and an id."""

import json

import pytest
from openai import BadRequestError, OpenAI
from support.backend import Backend
from support.batches import ended
from support.stack import KEY, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

DAY_MS = 86_400_000
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SENT = {"traceparent": PARENT, "x-team": "theirs", "x-other": "no"}


@pytest.fixture
def served(tmp_path):
    """An installation that forwards some headers, and its server, which orders requests by priority."""
    with Backend() as backend:
        server = {"url": backend.url, "headers": {"x-team": "ours"}}
        by_deadline = {"priority_by_deadline": True, "deadline_header": "x-slo-ttft-ms"}
        models = {"m": {"backends": [server | by_deadline]}}
        names = {"TIDEMILL_FORWARD_HEADERS": json.dumps(["X-Team", "x-tenant"])}
        with Stack(tmp_path / "data", models, names) as stack:
            yield OpenAI(base_url=stack.api, api_key=KEY, max_retries=0), backend


async def test_each_call_has_what_the_settings_ask_for(served):
    """The listed headers of the create, unless the server has its own, and its trace; a rerun has its own."""
    client, backend = served
    bodies = [{"model": "m", "input": "a", "priority": -9}, {"model": "m", "input": "b"}]
    lines = [
        {"custom_id": f"{n}", "method": "POST", "url": "/v1/embeddings", "body": body}
        for n, body in enumerate(bodies)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    asked = {
        "input_file_id": client.files.create(file=("in.jsonl", content), purpose="batch").id,
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
    }
    for wrong in ({"x-tenant": "a\tb"}, dict.fromkeys(("x-tenant", "x-team"), "v" * 512 + "w")):
        with pytest.raises(BadRequestError, match="it is forwarded") as refused:
            client.batches.create(**asked, extra_headers=wrong)
        assert refused.value.param in wrong
    batch = ended(client, client.batches.create(**asked, extra_headers=SENT).id)
    assert batch.model_extra["tidemill"]["headers"] == {"x-team": "theirs"}
    assert batch.model_extra["tidemill"]["traceparent"] == PARENT
    calls = {call["x-request-id"]: call for call in backend.headers}
    assert calls.keys() == {f"{batch.id}-0-1", f"{batch.id}-1-1"}
    for call in calls.values():
        assert (call.getall("traceparent"), call.getall("x-team"), "x-other" in call) == (
            [PARENT],
            ["ours"],
            False,
        )
        assert 0 < int(call["x-slo-ttft-ms"]) <= DAY_MS
    priorities = {json.loads(body)["priority"] for body in backend.bodies}
    assert priorities == {batch.expires_at}
    backend.reset()
    made = client.post(f"/batches/{batch.id}/rerun", body={"lines": "all"}, cast_to=object)
    again = ended(client, made["id"])
    assert "headers" not in again.model_extra["tidemill"] or again.model_extra["tidemill"]["headers"] is None
    assert not any("traceparent" in call for call in backend.headers)
