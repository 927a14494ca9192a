"""A batch whose lines name several models, one of them on a server that is unreachable for a while."""

import json
import threading
from decimal import Decimal

import pytest
from openai import OpenAI
from playwright.sync_api import expect
from support.backend import Backend, Behaviour
from support.batches import CHAT, create, ended
from support.browser import chromium
from support.stack import KEY, Stack
from support.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

MODELS = ("cheap", "dear", "away")
LINES = 3_000
PRICES = {"cheap": 1, "dear": 20, "away": 300}
FAILS_EVERY = 7


def model_of(index):
    """Models alternate, the worst case for packing; the first half has no line for the unreachable server."""
    return MODELS[index % (3 if index >= LINES // 2 else 2)]


def request(index, model):
    body = {"model": model, "messages": [{"role": "user", "content": f"{'word ' * (index % 5)}{index}"}]}
    line = {"custom_id": f"l{index}", "method": "POST", "url": CHAT, "body": body}
    return json.dumps(line).encode() + b"\n"


def answers(body, nth):
    """Every seventh line of one model is refused."""
    del nth
    number = int(body["messages"][0]["content"].split()[-1])
    refused = body["model"] == "dear" and number % FAILS_EVERY == 0
    return Behaviour(status=400 if refused else 200, latency_seconds=0.01)


@pytest.fixture(scope="module")
def away():
    """A server that drops every connection until its `back` is set."""
    back = threading.Event()

    def rule(body, nth):
        return answers(body, nth) if back.is_set() else Behaviour(cut=True)

    with Backend(rule) as server:
        server.back = back
        yield server


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, inference, away):
    """An installation, encrypted, in which a batch may name three models."""
    models = inference.models("cheap", "dear") | away.models("away")
    for name, model in models.items():
        model["price"] = {"input_per_million": PRICES[name], "output_per_million": 0}
    models["cheap"]["aliases"] = ["also-cheap"]
    environ = {"TIDEMILL_LIMITS__MODELS_PER_BATCH_MAX": "3", "TIDEMILL_ENCRYPT_LOG": "true"}
    with Stack(tmp_path_factory.mktemp("mixed"), models, environ) as stack:
        yield stack


@pytest.fixture(scope="module")
def client(mixed):
    """The SDK."""
    return OpenAI(base_url=mixed.api, api_key=KEY, max_retries=10)


def shares(client, batch_id):
    """Counts, usage and cost of each model."""
    return {share["model"]: share for share in client.batches.retrieve(batch_id).tidemill["models"]}


def pending(counts):
    return counts["total"] - counts["completed"] - counts["failed"]


def lines_of(client, file_id):
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


@pytest.fixture(scope="module")
def batch(client, mixed, inference, away):
    """The ended batch; each stage was killed while lines waited for the unreachable server."""
    inference.reset(answers)
    named = {0: "also-cheap"}
    made = create(client, [request(index, named.get(index, model_of(index))) for index in range(LINES)])
    wait_until(lambda: inference.calls >= LINES // 6, "calls")
    for stage in ("ingest", "processors", "results"):
        mixed.kill(stage)

    def waits():
        found = shares(client, made)
        left = {name: pending(share["request_counts"]) for name, share in found.items()}
        return left == {"cheap": 0, "dear": 0, "away": LINES // 6}

    wait_until(waits, "the lines of the other models")

    def servers():
        waiting = client.batches.retrieve(made).tidemill["waiting"]
        return {f"http://{one.get('server')}/v1" for one in waiting}

    wait_until(lambda: servers() == {away.url}, "its server as the only reason")
    away.back.set()
    return ended(client, made)


def test_lines_of_several_models_are_one_batch(client, batch):
    """Its output is in input order; counts, usage and cost of each model are those of its lines."""
    assert (batch.status, batch.model) == ("completed", None)
    receipt = batch.tidemill["receipt"]
    assert (receipt["lines"], receipt["missing"], receipt["double"]) == (LINES, 0, 0)
    output, errors = lines_of(client, batch.output_file_id), lines_of(client, batch.error_file_id)
    places = [int(line["custom_id"][1:]) for line in output]
    assert places == sorted(places)
    assert {*places, *(int(line["custom_id"][1:]) for line in errors)} == set(range(LINES))
    found = shares(client, batch.id)
    assert tuple(found) == MODELS
    for model, share in found.items():
        mine = [line for line in output if model_of(int(line["custom_id"][1:])) == model]
        refused = [line for line in errors if model_of(int(line["custom_id"][1:])) == model]
        counts = share["request_counts"]
        assert (counts["completed"], counts["failed"]) == (len(mine), len(refused))
        assert counts["total"] == len(mine) + len(refused)
        read = sum(line["response"]["body"]["usage"]["prompt_tokens"] for line in mine)
        assert share["usage"]["input_tokens"] == read
        assert Decimal(share["cost"]["total"]) == read * Decimal(PRICES[model]) / 2_000_000
    total = sum(Decimal(share["cost"]["total"]) for share in found.values())
    assert Decimal(batch.tidemill["cost"]["total"]) == total


def test_pages_show_the_models(mixed, batch):
    """The batch's page has a row for each; the list says how many there are."""
    root = mixed.api.removesuffix("/v1")
    with chromium() as browser:
        page = browser.new_page()
        page.goto(root)
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        page.goto(f"{root}/dashboard/#/batches")
        expect(page.get_by_text("3 models").first).to_be_visible()
        page.goto(f"{root}/dashboard/#/batches/{batch.id}")
        for model, total in (("cheap", "1,250"), ("dear", "1,250"), ("away", "500")):
            row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=model, exact=True))
            expect(row).to_contain_text(total)


def test_usage_has_each_model(client, batch):
    """A sum for each; together they count as one batch."""
    found = shares(client, batch.id)

    def usage(by):
        return {row["model"]: row for row in client.get(f"/usage?group_by={by}", cast_to=object)["data"]}

    rows = wait_until(lambda: len(rows := usage("model")) == len(MODELS) and rows, "the entries of the ledger")
    for model, row in rows.items():
        assert row["cost"]["total"] == found[model]["cost"]["total"]
        assert (row["batches"], row["lines"]) == (1, found[model]["request_counts"]["completed"])
    assert usage("")[None]["batches"] == 1


def test_failed_lines_of_one_model_run_again(client, batch, inference):
    """A rerun of them is a batch of that model; a replay finds the lines of a model in its topic."""
    inference.reset()
    failed = shares(client, batch.id)["dear"]["request_counts"]["failed"]
    body = {"lines": "failed", "of_model": "dear"}
    made = client.post(f"/batches/{batch.id}/rerun", body=body, cast_to=object)["id"]
    rerun = ended(client, made)
    assert (rerun.status, rerun.model, rerun.request_counts.completed) == ("completed", "dear", failed)
    source = {"model": "away", "from": "2020-01-01T00:00:00Z"}
    plan = client.post("/replays", body={"source": source, "dry_run": True}, cast_to=object)
    assert (plan["lines"], plan["batches"], plan["lost_lines"]) == (LINES // 6, 1, 0)


def test_an_unknown_model_fails_the_batch(client, inference):
    """With the line and the field, and no line is called."""
    inference.reset()
    named = ("cheap", "dear", "nowhere", "away")
    batch = ended(client, create(client, [request(index, model) for index, model in enumerate(named)]))
    (error,) = batch.errors.data
    assert (batch.status, error.code, error.line, error.param) == ("failed", "model_not_found", 3, "body.model")
    assert not inference.calls


def test_a_deleted_batch_is_gone(client, batch):
    """With its files."""
    wait_until(lambda: client.delete(f"/batches/{batch.id}", cast_to=object)["deleted"], "deletion")
    files = wait_until(lambda: (found := [file.id for file in client.files.list()]) and found, "files")
    assert batch.output_file_id not in files
