"""Deduplication: a whole installation, encrypted, whose backend counts the calls for equal lines."""

import json
from collections import Counter

import pytest
from openai import OpenAI
from support.backend import Behaviour
from support.batches import CHAT, create, ended
from support.stack import KEY, Stack
from support.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

LINES = 3_000
BODIES = 293
FAILS_EVERY = 7


def body_of(index):
    """The number of the body of a line; runs of equal lines, and equal lines far apart."""
    return index * index // 2_000 % BODIES


BODY_OF = [body_of(index) for index in range(LINES)]
FIRST = {body: BODY_OF.index(body) for body in set(BODY_OF)}


def request(index, body, **fields):
    body = {"model": "m", "messages": [{"role": "user", "content": str(body)}], "temperature": 0, **fields}
    return json.dumps({"custom_id": f"l{index}", "method": "POST", "url": CHAT, "body": body}).encode() + b"\n"


def answers(body, nth):
    """Refuse some bodies every time."""
    del nth
    refused = int(body["messages"][0]["content"]) % FAILS_EVERY == 0
    return Behaviour(status=400 if refused else 200, latency_seconds=0.02)


def is_copy(line):
    return "copy_of" in line.get("tidemill", {})


@pytest.fixture(scope="module")
def stack(tmp_path_factory, inference):
    """An installation whose model asks equal lines once."""
    models = inference.models("m", max_in_flight=16)
    models["m"] |= {"dedupe": "batch", "price": {"input_per_million": 2, "output_per_million": 0}}
    environ = {"TIDEMILL_ENCRYPT_LOG": "true", "TIDEMILL_PART_BYTES": str(64 * 1024)}
    with Stack(tmp_path_factory.mktemp("dedupe"), models, environ) as stack:
        yield stack


@pytest.fixture(scope="module")
def client(stack):
    """The SDK."""
    return OpenAI(base_url=stack.api, api_key=KEY, max_retries=10)


def lines_of(client, file_id):
    """The lines of a file by their places, which are in order."""
    found = (
        [] if file_id is None else [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    )
    places = [int(line["custom_id"][1:]) for line in found]
    assert places == sorted(places)
    return dict(zip(places, found, strict=True))


@pytest.fixture(scope="module")
def batch(client, stack, inference):
    """The batch at its end: ingest is killed while it publishes, results while lines come and at the end."""
    inference.reset(answers)
    made = create(client, [request(index, body) for index, body in enumerate(BODY_OF)])
    stack.kill("ingest")
    wait_until(lambda: inference.calls > len(FIRST) // 2, "calls")
    stack.kill("results")
    wait_until(lambda: inference.calls >= len(FIRST), "all calls")
    stack.kill("results")
    return ended(client, made)


def test_each_body_is_asked_once_and_each_line_answered(client, batch, inference):
    """The copies follow their originals into the output or the error file."""
    assert len(inference.bodies) == inference.calls == len(FIRST)
    assert (batch.status, batch.tidemill["dedupe"]) == ("completed", "batch")
    output, errors = lines_of(client, batch.output_file_id), lines_of(client, batch.error_file_id)
    assert len(output) + len(errors) == LINES
    for place in range(LINES):
        line, first = (output | errors)[place], FIRST[BODY_OF[place]]
        assert (place in errors) is (BODY_OF[place] % FAILS_EVERY == 0)
        assert line.get("tidemill", {}).get("copy_of") == (None if place == first else f"l{first}")
        assert line["response"] == (output | errors)[first]["response"]
        if place in output:
            assert line["response"]["body"]["choices"][0]["message"]["content"] == f"echo: {BODY_OF[place]}"
    assert len({line["id"] for line in (output | errors).values()}) == LINES
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (LINES, len(output), len(errors))


def test_copies_cost_nothing_and_are_counted(client, batch):
    """Batch, receipt and ledger agree with the lines that were asked."""
    copies = LINES - len(FIRST)
    receipt = batch.tidemill["receipt"]
    assert (receipt["copies"], receipt["missing"], receipt["double"]) == (copies, 0, 0)
    assert batch.tidemill["copies"] == copies
    output = lines_of(client, batch.output_file_id).values()
    read = sum(line["response"]["body"]["usage"]["prompt_tokens"] for line in output if not is_copy(line))
    assert batch.usage.input_tokens == read
    assert float(batch.tidemill["cost"]["total"]) == pytest.approx(read / 1_000_000)

    def row():
        rows = client.get("/usage?group_by=model", cast_to=object)["data"]
        return next((row for row in rows if row["model"] == "m" and row["lines"] == len(output)), None)

    found = wait_until(row, "the entry of the ledger")
    completed = sum(map(is_copy, output))
    assert (found["copies"], found["cost"]["total"]) == (completed, batch.tidemill["cost"]["total"])


def test_pages_of_results_and_the_receipt_have_the_copies(client, batch):
    """At their indices, among the other lines."""
    found, after = [], -1
    while after is not None:
        page = client.get(f"/batches/{batch.id}/results?limit=1000&after={after}", cast_to=object)
        found += page["data"]
        after = page["next_after"] if page["has_more"] else None
    assert [line["index"] for line in found] == list(range(LINES))
    assert sum(is_copy(line["result"]) for line in found) == LINES - len(FIRST)
    receipt = client.get(f"/batches/{batch.id}/receipt", cast_to=object)
    assert (receipt["copies"], receipt["pending"]) == (LINES - len(FIRST), 0)


def test_a_rerun_of_the_failed_lines_has_their_copies(client, batch, inference):
    """The rerun deduplicates, too."""
    inference.reset()
    failed = [place for place, body in enumerate(BODY_OF) if body % FAILS_EVERY == 0]
    made = client.post(f"/batches/{batch.id}/rerun", body={"lines": "failed"}, cast_to=object)["id"]
    rerun = ended(client, made)
    assert (rerun.status, rerun.request_counts.completed) == ("completed", len(failed))
    assert sorted(lines_of(client, rerun.output_file_id)) == failed
    assert inference.calls == len({BODY_OF[place] for place in failed})


def test_a_cancelled_batch_has_the_copies_of_its_answers(client, inference):
    """Lines whose original was not answered get an error line."""
    inference.reset(lambda body, _: Behaviour(latency_seconds=600 * (body["messages"][0]["content"] != "0")))
    made = create(client, [request(index, index % 3) for index in range(30)])

    def is_answered():
        return client.batches.retrieve(made).request_counts.completed == 1

    wait_until(is_answered, "an answer")
    client.batches.cancel(made)
    batch = ended(client, made)
    assert batch.status == "cancelled"
    output, errors = lines_of(client, batch.output_file_id), lines_of(client, batch.error_file_id)
    assert sorted(output) == list(range(0, 30, 3))
    assert Counter(line["error"]["code"] for line in errors.values()) == {"batch_cancelled": 20}
    assert batch.tidemill["receipt"]["copies"] == 9


@pytest.mark.parametrize(
    ("dedupe", "fields", "calls"),
    [("none", {}, 9), ("batch", {"temperature": 0.5}, 9), ("all", {"temperature": 0.5}, 3), (None, {}, 3)],
)
def test_the_batch_decides_what_is_asked_once(client, inference, dedupe, fields, calls):
    """By default the model of its first line decides."""
    inference.reset()
    content = [request(index, index % 3, **fields) for index in range(9)]
    batch = ended(client, create(client, content, extra_body={"dedupe": dedupe} if dedupe else None))
    assert (batch.status, batch.request_counts.completed, inference.calls) == ("completed", 9, calls)


def test_another_value_is_refused(client):
    """The error lists the allowed values."""
    with pytest.raises(Exception, match="'none', 'batch', and 'all'"):
        create(client, [request(0, 0)], extra_body={"dedupe": "some"})


def test_the_list_of_copies_is_sealed_and_goes_with_its_batch(client, stack, batch):
    """Until then it is kept for a rebuild."""
    kept = stack.data / "store" / "results-large" / batch.id / "copies"
    assert kept.read_bytes().startswith(b"TMS1")
    client.delete(f"/batches/{batch.id}", cast_to=object)
    wait_until(lambda: not kept.exists(), "the removal of the list")
