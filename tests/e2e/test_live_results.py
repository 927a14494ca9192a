"""Results of a batch while it runs, and after its end."""

import json

import pytest
from openai import BadRequestError, OpenAI
from support.backend import Behaviour
from support.stack import KEY
from support.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

LINES = 40
HELD = range(30, 40)


class Answers:
    """Delay the last lines until the test releases them, and refuse one line in ten."""

    are_held = True

    def __call__(self, body, nth):
        del nth
        number = int(body["input"])
        if number in HELD and self.are_held:
            return Behaviour(status=429, headers={"retry-after": "1"})
        return Behaviour(status=400 if number % 10 == 5 and number not in HELD else 200)


def test_results_of_a_running_batch(stack, backend):
    """Pages, receipt, errors and timeline, and the same once it has completed."""
    answers = Answers()
    backend.reset(answers)
    client = OpenAI(base_url=stack.api, api_key=KEY)
    bodies = ({"model": "embed", "input": str(number)} for number in range(LINES))
    lines = (
        {"custom_id": f"l{number}", "method": "POST", "url": "/v1/embeddings", "body": body}
        for number, body in enumerate(bodies)
    )
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")

    def get(path):
        return client.get(f"/batches/{batch.id}/{path}", cast_to=object)

    wait_until(lambda: len(get("results")["data"]) == 30, "30 finished lines")
    assert client.batches.retrieve(batch.id).status == "in_progress"
    page = get("results?limit=7&after=2")
    assert [entry["index"] for entry in page["data"]] == list(range(3, 10))
    assert (page["has_more"], page["next_after"]) == (True, 9)
    assert page["data"][0]["result"]["custom_id"] == "l3"
    assert [entry["index"] for entry in get("results?status=failed")["data"]] == [5, 15, 25]
    receipt = get("receipt")
    assert (receipt["final"], receipt["lines"]) == (False, LINES)
    assert get("errors")["data"][0]["count"] == 3
    assert [event["event"] for event in get("timeline")["data"]] == ["created", "in_progress", "deadline"]

    answers.are_held = False
    wait_until(lambda: client.batches.retrieve(batch.id).status == "completed", "completion")
    page = get("results?limit=1000")
    assert [entry["index"] for entry in page["data"]] == list(range(LINES))
    assert (page["has_more"], page["next_after"]) == (False, LINES - 1)
    receipt = get("receipt")
    assert (receipt["final"], receipt["pending"], receipt["missing"], receipt["double"]) == (True, 0, 0, 0)
    assert receipt["output"]["lines"] + receipt["errors"]["lines"] == LINES
    assert get("errors")["total"] == 3
    assert "completed" in [event["event"] for event in get("timeline")["data"]]


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=1001", "limit"), ("after=x", "after"), ("status=done", "status")],
)
def test_an_invalid_query_is_a_400(stack, query, param):
    """With the parameter's name."""
    client = OpenAI(base_url=stack.api, api_key=KEY, max_retries=0)
    batch = client.batches.create(input_file_id="file-none", endpoint="/v1/embeddings", completion_window="24h")
    with pytest.raises(BadRequestError) as caught:
        client.get(f"/batches/{batch.id}/results?{query}", cast_to=object)
    assert caught.value.param == param
