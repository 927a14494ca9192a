"""The files of ended batches in a simulation, and all that was published of these batches."""

import hashlib
import itertools
import json

from support.facts import batch_id, commands, lines, model_of
from support.simchecks import check_waiting
from support.simulated import leads_to

from tidemill.schemas.log.part import part_key

MODELS = ("a", "bb", "ccc")


def input_file(total):
    return b"".join(
        b'{"custom_id":"id-%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}\n' % index
        for index in range(total)
    )


def filled(simulation, total, *numbers):
    """The records of batches of `total` lines, whose inputs are in the store."""
    for number in numbers:
        simulation.store.objects[f"files/in{number}"] = input_file(total)
    return [[*commands(number, total), *lines(simulation.chance, number, total)] for number in numbers]


def interleaved(chance, streams):
    streams = [list(stream) for stream in streams]
    while streams:
        stream = chance.choice(streams)
        yield stream.pop(0)
        if not stream:
            streams.remove(stream)


def final(simulation, number):
    """The last record of a batch, after a look at all that was published of it."""
    records = [record.batch for record in simulation.log.published if record.batch.id == batch_id(number)]
    for batch in records:
        check_waiting(batch)
    for before, after in itertools.pairwise(records):
        assert after.status is before.status or leads_to(before.status, after.status)
        assert after.request_counts.completed >= before.request_counts.completed
        assert after.request_counts.failed >= before.request_counts.failed
    return records[-1]


def file_of(simulation, file_id, receipt):
    if file_id is None:
        assert receipt is None
        return []
    content = simulation.store.objects[simulation.log.files[file_id]]
    assert hashlib.sha256(content).hexdigest() == receipt.sha256
    assert (len(content), content.count(b"\n")) == (receipt.bytes, receipt.lines)
    return [json.loads(text) for text in content.splitlines()]


def output_of(simulation, batch):
    """The lines of the output; numbered files are together what the receipt says, all but the last full."""
    receipt, file_ids = batch.tidemill.receipt, batch.tidemill.output_file_ids
    if batch.tidemill.numbered is None or receipt.output is None:
        assert not file_ids
        return file_of(simulation, batch.output_file_id, receipt.output)
    assert file_ids[0] == batch.output_file_id
    whole = b"".join(simulation.store.objects[simulation.log.files[file_id]] for file_id in file_ids)
    assert hashlib.sha256(whole).hexdigest() == receipt.output.sha256
    assert (len(whole), whole.count(b"\n")) == (receipt.output.bytes, receipt.output.lines)
    assert {file.lines for file in receipt.outputs[:-1]} <= {batch.tidemill.numbered.lines_max}
    files = zip(file_ids, receipt.outputs, strict=True)
    return [found for file_id, file in files for found in file_of(simulation, file_id, file)]


def check_ledger(simulation, batch, output, models):
    """One entry a batch, whatever the price was when it was sent again, that equals the output and the batch."""
    entries = [entry for entry in simulation.log.ledger if entry.batch_id == batch.id]
    assert entries
    assert all(entry == entries[0] for entry in entries)
    assert [result.model for result in entries[0].models] == list(models)
    for result in entries[0].models:
        used = [found["response"]["body"]["usage"] for found in output if named(found, models) == result.model]
        assert result.completed == len(used)
        assert result.usage.input_tokens == sum(usage["prompt_tokens"] for usage in used)
        assert result.usage.output_tokens == sum(usage["completion_tokens"] for usage in used)
        cost, price = result.bill.cost, result.bill.tariff
        assert cost.input * 1_000_000 == result.usage.input_tokens * price.input_per_million
        assert cost.total == cost.input + cost.output
    assert sum(result.completed for result in entries[0].models) == len(output)
    assert sum(result.bill.cost.total for result in entries[0].models) == batch.tidemill.cost.total
    assert sum(result.usage.total_tokens for result in entries[0].models) == batch.usage.total_tokens
    assert entries[0].status is batch.status


def check_so_far(simulation, batch, done):
    """What a batch at work says it used grows to what it used; it counts no line twice, whatever crashed."""
    shown = [record.batch for record in simulation.log.published if record.batch.id == batch.id]
    used = [one.tidemill.progress.usage for one in shown if one.tidemill.progress and one.tidemill.progress.usage]
    for usage in used:
        assert 2 * usage.input_tokens == 3 * usage.output_tokens
        assert usage.input_tokens <= 3 * done
    assert used == sorted(used, key=lambda usage: usage.input_tokens)
    return len(used)


def named(found, models):
    """The model of a result line."""
    return model_of(int(found["custom_id"][3:]), models)


def check_models(simulation, batch, output, errors, models):
    """Counts, usage and cost of each model, which no record sets back, equal its lines in the two files."""
    shares = [record.batch.tidemill.models for record in simulation.log.published if record.batch.id == batch.id]
    for before, after in itertools.pairwise(share for share in shares if share):
        for old, new in zip(before, after, strict=True):
            assert old.request_counts.completed <= new.request_counts.completed
            assert old.request_counts.failed <= new.request_counts.failed
    total = len(output + errors)
    assert batch.model is None
    assert [share.model for share in batch.tidemill.models] == list(models)
    for share in batch.tidemill.models:
        mine = [found for found in output + errors if named(found, models) == share.model]
        ok = [found for found in output if found in mine]
        called = [found for found in mine if found["response"] is not None]
        counts = share.request_counts
        assert (counts.total, counts.completed) == (len(mine), len(ok))
        assert counts.failed == len(called) - len(ok)
        assert (share.usage.input_tokens, share.usage.output_tokens) == (3 * len(ok), 2 * len(ok))
    assert sum(share.request_counts.total for share in batch.tidemill.models) == total
    assert sum(share.cost.total for share in batch.tidemill.models) == batch.tidemill.cost.total


def check(simulation, number, total, status, *, recovered=False, models=()):
    batch = final(simulation, number)
    assert batch.status is status
    assert batch.tidemill.recovered is recovered
    receipt = batch.tidemill.receipt
    ends = [
        found for found in simulation.log.published if found.batch.id == batch.id and found.batch.status is status
    ]
    assert [found.files_offset is None for found in ends] == [not receipt.files] * len(ends)
    output = output_of(simulation, batch)
    errors = file_of(simulation, batch.error_file_id, receipt.errors)
    for found in (output, errors):
        places = [int(entry["custom_id"][3:]) for entry in found]
        assert places == sorted(places)
    assert sorted(entry["custom_id"] for entry in output + errors) == sorted(f"id-{i}" for i in range(total))
    assert (receipt.lines, receipt.missing, receipt.double) == (total, 0, 0)
    assert batch.request_counts.completed == len(output)
    assert batch.usage.input_tokens == 3 * len(output)
    assert batch.usage.output_tokens == 2 * len(output)
    check_ledger(simulation, batch, output, models or ["m"])
    check_so_far(simulation, batch, len(output))
    if models:
        check_models(simulation, batch, output, errors, models)
    else:
        assert (batch.model, batch.tidemill.models) == ("m", ())
    assert not [key for key in simulation.store.objects if key.startswith(f"parts/{batch.id}/0000000000")] or (
        simulation.crashes
    )
    return output, errors


class Damage:
    """Takes parts of batches away, or their ends, or turns a bit, when they are needed; of each batch once."""

    def __init__(self, simulation):
        self.keys = {}
        """What was damaged, by batch, and how it was."""
        self._objects = simulation.store.objects
        self._chance = simulation.chance
        simulation.tables.closing = self._meet

    def _meet(self, state):
        if state.id in self.keys or not state.parts:
            return
        doomed = self._chance.sample(state.parts, self._chance.randint(1, len(state.parts)))
        self.keys[state.id] = {key: self._objects[key] for key in (part_key(state.id, part) for part in doomed)}
        for key, content in self.keys[state.id].items():
            match self._chance.choice(("gone", "cut", "turned")):
                case "gone":
                    del self._objects[key]
                case "cut":
                    self._objects[key] = content[: self._chance.randrange(len(content))]
                case "turned":
                    at = self._chance.randrange(len(content))
                    self._objects[key] = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
