"""Invariant 4: the ledger is the exact sum of `usage` over the output lines, despite kills."""

import asyncio
import json
from collections import defaultdict
from decimal import Decimal

import pytest
from openai import NOT_GIVEN, OpenAI
from support.backend import Behaviour
from support.batches import CHAT, create, ended
from support.stack import KEY, Stack
from support.waiting import wait_until

from tidemill.kafka.follower import Follower
from tidemill.schemas.log import codec, topics

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

EMBED = "/v1/embeddings"
LINES = 3_000
KILL_AFTER = (600, LINES)
"""Calls made when results is killed: in the middle, and as the files are about to be written."""
FAILS_EVERY = 97
PRICES = {
    "chat": {"input_per_million": 0.1, "output_per_million": 0.37},
    "embed": {"input_per_million": 0.013, "output_per_million": 0},
}
DISCOUNTS = {"24h": 0.25, "60s": 0.75}
OUTPUT_LIFE_SECONDS = 7200


def answers(body, nth):
    """Refuse every 97th line; a line `wait` outlasts the batch, and any other takes a moment."""
    del nth
    text = body["input"] if "input" in body else body["messages"][0]["content"]
    *_, what, number = text.split()
    if what == "wait":
        return Behaviour(latency_seconds=600)
    return Behaviour(status=400 if int(number) % FAILS_EVERY == 0 else 200, latency_seconds=0.02)


def lines(endpoint, count, *, waiting=0):
    """Requests of different lengths; the server does not answer the last ones in time."""
    for number in range(count):
        what = "wait" if number >= count - waiting else "go"
        text = f"{'word ' * (number % 7)}{what} {number}"
        model = "embed" if endpoint == EMBED else "chat"
        body = {"input": text} if endpoint == EMBED else {"messages": [{"role": "user", "content": text}]}
        line = {"custom_id": f"l{number}", "method": "POST", "url": endpoint, "body": {"model": model, **body}}
        yield json.dumps(line).encode() + b"\n"


@pytest.fixture(scope="module")
def billed(tmp_path_factory, inference):
    """An installation with prices."""
    models = {name: model | {"price": PRICES[name]} for name, model in inference.models("chat", "embed").items()}
    environ = {"TIDEMILL_WINDOWS": json.dumps(DISCOUNTS), "TIDEMILL_DEFAULT_WINDOW": "60s"}
    environ["TIDEMILL_OUTPUT_LIFE_SECONDS"] = str(OUTPUT_LIFE_SECONDS)
    with Stack(tmp_path_factory.mktemp("billed"), models, environ) as stack:
        yield stack


@pytest.fixture(scope="module")
def client(billed):
    """The SDK with a key of a project of its own."""
    admin = OpenAI(base_url=billed.api, api_key=KEY)
    body = {"name": "test", "project": "acme", "role": "write"}
    secret = admin.post("/admin/keys", body=body, cast_to=object)["secret"]
    return OpenAI(base_url=billed.api, api_key=secret, max_retries=10)


def used(client, batch):
    """Usage according to the output file of a batch: lines, input and output tokens."""
    if batch.output_file_id is None:
        return 0, 0, 0
    file = client.files.retrieve(batch.output_file_id)
    assert file.expires_at - file.created_at == OUTPUT_LIFE_SECONDS
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    usages = [answer["response"]["body"]["usage"] for answer in answers]
    return (
        len(answers),
        sum(usage["prompt_tokens"] for usage in usages),
        sum(usage.get("completion_tokens", 0) for usage in usages),
    )


def ledger(kafka):
    """Every record of the topic, by its key."""
    found = defaultdict(list)

    async def read():
        follower = Follower(
            kafka, topics.LEDGER.name, lambda key, value, _: found[key].append(codec.decode_ledger(value))
        )
        await follower.start()
        await follower.caught_up()
        await follower.stop()

    asyncio.run(read())
    return found


def price(batch, read, written):
    each = {name: Decimal(str(amount)) for name, amount in PRICES[batch.model].items()}
    base = read * each["input_per_million"] + written * each["output_per_million"]
    return base * (1 - discount(batch)) / 1_000_000


def discount(batch):
    return Decimal(str(DISCOUNTS[batch.completion_window]))


def batches(client, billed, backend):
    """Batches with every final status, by id; results is killed twice while the first one runs."""
    large = create(client, lines(CHAT, LINES))
    made = [
        large,
        create(client, lines(EMBED, 200), EMBED),
        create(client, lines(CHAT, 100, waiting=3), window=NOT_GIVEN),  # that is 60s
        create(client, [*lines(CHAT, 3), b"no json\n"]),
    ]
    for calls in KILL_AFTER:
        wait_until(lambda calls=calls: backend.calls >= calls, f"{calls} calls")
        billed.kill("results")
    cancelled = create(client, lines(CHAT, 50, waiting=5))
    made.append(cancelled)
    wait_until(lambda: client.batches.retrieve(cancelled).request_counts.completed, "a finished line")
    client.batches.cancel(cancelled)
    return {batch_id: ended(client, batch_id) for batch_id in made}


def test_the_ledger_is_the_sum_of_the_outputs(client, billed, backend):
    """One entry for each batch that ran, equal to its output, its own cost and its shown usage."""
    backend.reset(answers)
    made = batches(client, billed, backend)
    assert sorted(batch.status for batch in made.values()) == [
        "cancelled", "completed", "completed", "expired", "failed",
    ]  # fmt: skip
    entries = {key: found for key, found in ledger(billed.cluster()).items() if key in made}
    assert set(entries) == {batch_id for batch_id, batch in made.items() if batch.status != "failed"}
    sums = defaultdict(lambda: [0, 0, 0, Decimal(0)])
    for batch_id, found in entries.items():
        batch = made[batch_id]
        # A new owner of the partition publishes the same entry again, with its own number; compaction keeps one.
        bills = [entry.model_copy(update={"owner": 0}) for entry in found]
        assert all(bill == bills[0] for bill in bills)
        entry, (share,) = bills[0], bills[0].models
        count, read, written = used(client, batch)
        assert count, "each of these batches has done something"
        assert (entry.project, entry.status, share.model) == ("acme", batch.status, batch.model)
        assert (share.completed, share.usage.input_tokens, share.usage.output_tokens) == (count, read, written)
        assert (batch.usage.input_tokens, batch.usage.output_tokens) == (read, written)
        assert share.bill.cost.total == price(batch, read, written)
        cost = batch.tidemill["cost"]
        assert Decimal(cost["total"]) == share.bill.cost.total == Decimal(cost["input"]) + Decimal(cost["output"])
        assert Decimal(cost["discount"]) == discount(batch)
        for place, amount in enumerate((count, read, written, share.bill.cost.total)):
            sums[batch.model][place] += amount

    def shown(by):
        return client.get(f"/usage?group_by={by}", cast_to=object)["data"]

    rows = wait_until(lambda: (found := shown("batch")) and len(found) == len(entries) and found, "all entries")
    assert {row["batch_id"] for row in rows} == set(entries)
    for row in shown("model"):
        got = (row["lines"], row["input_tokens"], row["output_tokens"], Decimal(row["cost"]["total"]))
        assert got == tuple(sums[row["model"]])
    assert {row["model"] for row in shown("model")} == set(sums)
