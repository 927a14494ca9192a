"""Checks a run from outside, by the API, the files, the ledger and the backend's counters."""

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import orjson
from chaos.mock import usage_of
from chaos.traffic import Job
from openai import OpenAI
from support.waiting import WAIT_SECONDS_MAX

MILLION = 1_000_000
OVER = ("completed", "cancelled", "expired", "failed")
MOVES = {
    "validating": {"in_progress", "finalizing", "cancelling", *OVER},
    "in_progress": {"finalizing", "cancelling", *OVER},
    "finalizing": {"completed", "expired", "cancelled"},
    "cancelling": {"cancelled", "completed", "expired"},
}
"""Possible moves from one observed status to the next; the poll may have missed some in between."""
NOT_RUN = ("batch_cancelled", "batch_expired")
POLL_SECONDS = 0.5
TOO_LARGE = "backend_reply_too_large"
"""The only backend fault that ends a line at once, since a retry would most likely fail the same way."""


@dataclass
class Verdict:
    """The numbers of wrong lines; `told` describes each fault."""

    lost: int = 0
    double: int = 0
    wrong_bill: int = 0
    wrong: int = 0
    """Answers of other lines, lines that failed without cause, wrong receipts, status going back."""
    too_large: int = 0
    """Lines that failed because their reply was too large; the backend counts how many there may be."""
    told: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.double or self.wrong_bill or self.wrong)

    def say(self, what: str, *, lost: int = 0, double: int = 0, wrong_bill: int = 0, wrong: int = 0) -> None:
        """Note a fault, if there is one."""
        if lost or double or wrong_bill or wrong:
            self.lost += lost
            self.double += double
            self.wrong_bill += wrong_bill
            self.wrong += wrong
            self.told.append(what)


class Watcher:
    """Polls all batches, and reports a status or count that goes back."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[str, Any]] = {}
        self.told: list[str] = []

    def look(self, batches: list[dict[str, Any]]) -> int:
        """Poll the API once; returns the number of final lines of all batches."""
        for batch in batches:
            before = self.seen.get(batch["id"])
            if before is not None and (fault := _going_back(before, batch)):
                self.told.append(f"{batch['id']}: {fault}")
            if batch["status"] == "completed" and not (batch["output_file_id"] or batch["error_file_id"]):
                self.told.append(f"{batch['id']} is completed without its files")
            self.seen[batch["id"]] = batch
        return sum(_final(batch) for batch in self.seen.values())


def check(client: OpenAI, job: Job, batch_id: str, verdict: Verdict) -> None:
    """Compare an ended batch with its job."""
    batch = client.get(f"/batches/{batch_id}", cast_to=dict)
    name = f"job {job.number} ({batch_id}, {batch['status']})"
    verdict.say(f"{name} has lost parts without a fault", wrong=batch["tidemill"]["recovered"])
    expected = (
        {"completed"}
        | ({"expired"} if job.window != "24h" else set())
        | ({"cancelled"} if job.is_cancelled else set())
    )
    verdict.say(f"{name} should have ended as one of {sorted(expected)}", wrong=batch["status"] not in expected)
    output = _content(client, batch["output_file_id"])
    errors = _content(client, batch["error_file_id"])
    if batch["request_counts"]["total"] == 0 and batch["status"] in {"expired", "cancelled"}:
        # The batch ended before ingest validated it, so no line was ever accepted.
        verdict.say(f"{name} has lines that were never accepted", wrong=bool(output or errors))
        return
    _check_lines(job, output, errors, name, verdict)
    _check_receipt(batch, output, errors, name, verdict)
    _check_usage(job, batch, output, name, verdict)


def check_ledger(client: OpenAI, batches: list[dict[str, Any]], verdict: Verdict) -> None:
    """Check that the ledger has each batch once, with the sum of its lines' usage."""
    give_up = time.monotonic() + WAIT_SECONDS_MAX
    entries, tokens = _ledger(client)
    # The api reads the ledger and the ends of batches from two topics.
    while any(not entries[batch["id"]] for batch in batches) and time.monotonic() < give_up:
        time.sleep(POLL_SECONDS)
        entries, tokens = _ledger(client)
    for batch in batches:
        name = f"the ledger of {batch['id']}"
        verdict.say(f"{name}: {entries[batch['id']]} entries", wrong_bill=entries[batch["id"]] != 1)
        used = (batch.get("usage") or {}).get("total_tokens", 0)
        verdict.say(f"{name}: not the batch's usage", wrong_bill=tokens.get(batch["id"], 0) != used)


def _ledger(client: OpenAI) -> tuple[Counter[str], dict[str, int]]:
    """The entries and the tokens of each batch."""
    entries: Counter[str] = Counter()
    tokens: dict[str, int] = {}
    after: dict[str, Any] = {}
    while True:
        params = {"group_by": "batch", "start_time": 0, "limit": 1000, **after}
        page = client.get("/usage", cast_to=dict, options={"params": params})
        for entry in page["data"]:
            entries[entry["batch_id"]] += 1
            tokens[entry["batch_id"]] = entry["total_tokens"]
        if not page["has_more"]:
            return entries, tokens
        after = {"after": page["last_id"]}


def _check_lines(job: Job, output: bytes, errors: bytes, name: str, verdict: Verdict) -> None:
    found: Counter[int] = Counter()
    for content, is_error in ((output, False), (errors, True)):
        places = []
        for line in map(orjson.loads, content.splitlines()):
            index = int(line["custom_id"].removeprefix("l-"))
            places.append(index)
            if is_error and line["response"] is None and line["error"]["code"] == TOO_LARGE:
                verdict.too_large += 1
            elif not _is_right(job, index, line, is_error=is_error):
                verdict.say(f"{name}: line {index} has the wrong end: {str(line)[:300]}", wrong=1)
        found.update(places)
        verdict.say(f"{name}: a file is not in input order", wrong=places != sorted(places))
    missing = job.lines - len(found)
    verdict.say(f"{name}: {missing} of {job.lines} lines are in no file", lost=missing)
    twice = found.total() - len(found)
    verdict.say(f"{name}: {twice} lines are there twice", double=twice)


def _is_right(job: Job, index: int, line: dict[str, Any], *, is_error: bool) -> bool:
    if not is_error:
        return not job.is_refused(index) and job.is_answer(index, line["response"]["body"])
    if line["response"] is not None:
        return job.is_refused(index) and line["response"]["status_code"] == 400
    return not job.is_whole and line["error"]["code"] in NOT_RUN


def _check_receipt(batch: dict[str, Any], output: bytes, errors: bytes, name: str, verdict: Verdict) -> None:
    receipt = batch["tidemill"]["receipt"]
    verdict.say(f"{name}: the receipt misses lines", lost=receipt["missing"])
    verdict.say(f"{name}: the receipt has lines twice", double=receipt["double"])
    for content, part in ((output, "output"), (errors, "errors")):
        digest = receipt.get(part) and receipt[part]["sha256"]
        is_true = digest == hashlib.sha256(content).hexdigest() if digest else not content
        verdict.say(f"{name}: the receipt's digest of {part} is not true", wrong=not is_true)
    counts = batch["request_counts"]
    verdict.say(f"{name}: counts are not the files'", wrong=counts["completed"] != output.count(b"\n"))


def _check_usage(job: Job, batch: dict[str, Any], output: bytes, name: str, verdict: Verdict) -> None:
    read = written = 0
    for line in map(orjson.loads, output.splitlines()):
        tokens = usage_of(job.text(int(line["custom_id"].removeprefix("l-"))))
        own = line["response"]["body"]["usage"]
        # After a kill a line may come back in another group of lines, with another share of a call's tokens.
        read += own["prompt_tokens"] if "tidemill" in own else tokens[0]
        written += 0 if job.endpoint.endswith("embeddings") else tokens[1]
    usage = batch["usage"]
    verdict.say(
        f"{name}: usage is {usage['input_tokens']} + {usage['output_tokens']}, not {read} + {written}",
        wrong_bill=(usage["input_tokens"], usage["output_tokens"]) != (read, written),
    )
    # The prices of `Backend.models`; a batch pays half of them.
    due = (read * Decimal("0.3") + written * Decimal("1.1")) / MILLION / 2
    verdict.say(f"{name}: costs {batch['tidemill']['cost']['total']}, not {due}",
                wrong_bill=Decimal(batch["tidemill"]["cost"]["total"]) != due)  # fmt: skip


def _content(client: OpenAI, file_id: str | None) -> bytes:
    return client.files.content(file_id).content if file_id else b""


def _final(batch: dict[str, Any]) -> int:
    counts = batch["request_counts"] or {"completed": 0, "failed": 0}
    return int(counts["completed"] + counts["failed"])


def _going_back(before: dict[str, Any], after: dict[str, Any]) -> str:
    if after["status"] != before["status"] and after["status"] not in MOVES.get(before["status"], set()):
        return f"from {before['status']} to {after['status']}"
    old, new = before["request_counts"], after["request_counts"]
    if old and new and after["status"] not in OVER and any(new[name] < old[name] for name in old):
        return f"counts from {old} to {new}"
    return ""
