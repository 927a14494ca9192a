"""Lines that get the answer to an equal one, under crashes: each is in the files once, and the sums are exact."""

import json
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import msgspec
import pytest
from support.facts import NOW, batch_id, commands, lines, model_of
from support.simulated import Simulation

from tidemill.configuration.settings import Settings
from tidemill.ops import rebuild as command
from tidemill.results.files import finalizer, merge
from tidemill.results.files.compaction import COPY_PARTS_FROM
from tidemill.results.files.overlay_store import OverlayStore
from tidemill.results.files.rebuild import Rebuild, same
from tidemill.schemas.jsonl import copies as listed
from tidemill.schemas.jsonl.copies import Copy
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import CancelRequested, FileRecord
from tidemill.schemas.log.part import copies_key, file_key, index_key
from tidemill.schemas.ports import once
from tidemill.schemas.resources.batch import Status
from tidemill.schemas.resources.file import File
from tidemill.storage.directory import DirectoryStore

SEEDS = range(40)
TOTAL = 70
MODELS = ("a", "bb", "ccc")


class Found:
    """A batch with copies that is over, and its two files."""

    def __init__(self, simulation: Simulation, originals: dict[int, int]) -> None:
        self.batch = next(
            record.batch for record in reversed(simulation.log.published) if record.batch.id == batch_id(0)
        )
        self.entry = simulation.log.ledger[-1]
        self.originals = originals
        self.output, self.errors = (
            {} if file_id is None else self._lines(simulation, file_id)
            for file_id in (self.batch.output_file_id, self.batch.error_file_id)
        )

    def _lines(self, simulation: Simulation, file_id: str) -> dict[int, dict]:
        content = simulation.store.objects[simulation.log.files[file_id]].splitlines()
        found = [json.loads(text) for text in content]
        places = [int(line["custom_id"][3:]) for line in found]
        assert places == sorted(places)
        return dict(zip(places, found, strict=True))

    @property
    def copied(self) -> list[int]:
        """The lines of both files that have the answer to another one."""
        return [place for place, line in (self.output | self.errors).items() if "tidemill" in line]

    def check(self, *, is_billed: bool) -> None:
        receipt = self.batch.tidemill.receipt
        assert sorted([*self.output, *self.errors]) == list(range(TOTAL))
        assert (receipt.lines, receipt.missing, receipt.double) == (TOTAL, 0, 0)
        for place in self.copied:
            self._check_copy(place, is_billed=is_billed)
        assert receipt.copies == len(self.copied)
        completed = [place for place in self.copied if place in self.output]
        assert sum(result.copies for result in self.entry.models) == len(completed)
        counted = [place for place in self.output if is_billed or place not in self.copied]
        assert self.batch.usage.input_tokens == 3 * len(counted)
        assert self.batch.request_counts.completed == len(self.output)
        called = [place for place, line in self.errors.items() if line["response"]]
        assert self.batch.request_counts.failed == len(called)
        for result in self.entry.models:
            mine = [place for place in counted if self.batch.model or model_of(place, MODELS) == result.model]
            assert result.usage.input_tokens == 3 * len(mine)
            assert result.bill.cost.input * 1_000_000 == 3 * len(mine) * result.bill.tariff.input_per_million
        assert sum(result.bill.cost.total for result in self.entry.models) == self.batch.tidemill.cost.total

    def _check_copy(self, place: int, *, is_billed: bool) -> None:
        """A copy is in the file of its original, and differs from it in the ids alone."""
        found = self.output if place in self.output else self.errors
        original = found[self.originals[place]]
        billed = {"billed": True} if is_billed and place in self.output else {}
        assert found[place]["tidemill"] == {"copy_of": f"id-{self.originals[place]}", **billed}
        assert found[place]["id"] != original["id"]
        assert (found[place]["response"], found[place]["error"]) == (original["response"], original["error"])


def simulation_of(seed: int, models: tuple[str, ...], *, is_billed: bool) -> tuple[Simulation, dict[int, int]]:
    """A batch most of whose lines equal an earlier one of the same model, in parts of a few lines."""
    simulation = Simulation(seed, part_bytes=500, bill_copies=is_billed)
    bodies = [(simulation.chance.randrange(12), model_of(index, models or ("m",))) for index in range(TOTAL)]
    first = {body: index for index, body in reversed(list(enumerate(bodies)))}
    originals = {index: first[body] for index, body in enumerate(bodies) if first[body] != index}
    rows = sorted((original, index) for index, original in originals.items())
    simulation.store.objects[copies_key(batch_id(0))] = b"".join(
        listed.encode(Copy(original, index, msgspec.Raw(b'"id-%d"' % index))) for original, index in rows
    )
    simulation.store.objects["files/in0"] = b"".join(
        b'{"custom_id":"id-%d","method":"POST","url":"/v1/chat/completions","body":{}}\n' % index
        for index in range(TOTAL)
    )
    return simulation, originals


@pytest.mark.parametrize("models", [(), MODELS])
@pytest.mark.parametrize("seed", SEEDS)
async def test_each_copy_has_the_result_of_its_original(seed, models, tmp_path, monkeypatch):
    """Also if the original failed; crashes at any await, and parts that are lost, change nothing."""
    monkeypatch.setattr(merge, "STREAMS_MAX", 2 + seed % 7)
    monkeypatch.setattr(merge, "AHEAD_BYTES_MAX", seed * 100)
    is_billed = seed % 3 == 0
    simulation, originals = simulation_of(seed, models, is_billed=is_billed)
    simulation.log.events += commands(0, TOTAL, models, originals)
    simulation.log.events += lines(simulation.chance, 0, TOTAL, models, originals)
    if seed % 5 == 0:
        simulation.tables.closing = lambda _: [
            simulation.store.objects.pop(key)
            for key in [key for key in simulation.store.objects if key.startswith("parts/")]
        ]
    await simulation.run(crashes_max=simulation.chance.randint(0, 12))
    found = Found(simulation, originals)
    found.check(is_billed=is_billed)
    assert found.batch.status is Status.COMPLETED
    assert found.batch.tidemill.copies == len(originals)
    assert sorted(found.copied) == sorted(originals)
    simulation.fuse.left, simulation.fuse.burnt = -1, False
    store = OverlayStore(tmp_path, simulation.store)
    rebuild = Rebuild(batch=found.batch, store=store, bill_copies=is_billed)
    for _, headers, value in simulation.log.events:
        await rebuild.add(headers, value)
    assert rebuild.is_complete
    assert (await rebuild.finish()).is_equal
    for file_id, key in simulation.log.files.items():
        assert await same(store, file_key(file_id), key)
        assert await same(store, index_key(file_key(file_id)), index_key(key))


class LogReader:
    """Reads the records of a simulation, with those of its files."""

    def __init__(self, simulation: Simulation) -> None:
        made = File(id="", bytes=1, created_at=1, filename="f", purpose="batch_output")
        files = {
            file_id: FileRecord(
                project="p", file=made.model_copy(update={"id": file_id}), key=key, sha256="0" * 64
            )
            for file_id, key in simulation.log.files.items()
        }
        shown = {record.batch.id: record for record in simulation.log.published}
        self._records = [(topic, None, *rest) for topic, *rest in simulation.log.events]
        for topic, found in ((topics.FILES.name, files), (topics.BATCHES.name, shown)):
            self._records += [(topic, key.encode(), (), codec.encode(record)) for key, record in found.items()]

    def partitions(self, topic):
        del topic
        return []

    async def records(self, topic, starts=None):
        del starts
        for name, key, headers, value in self._records:
            if name == topic:
                yield SimpleNamespace(key=key, headers=headers, value=value)


async def test_the_command_finds_files_with_billed_copies_intact(tmp_path, monkeypatch):
    """It rebuilds them by the setting."""
    simulation, originals = simulation_of(1, (), is_billed=True)
    simulation.log.events += [
        *commands(0, TOTAL, (), originals), *lines(simulation.chance, 0, TOTAL, (), originals)
    ]  # fmt: skip
    await simulation.run(crashes_max=0)
    store = DirectoryStore(tmp_path)
    for key, content in simulation.store.objects.items():
        await store.write(key, once(content))
    monkeypatch.setattr(command.history, "reading", lambda _: nullcontext(LogReader(simulation)))
    settings, said = Settings(store=tmp_path.as_uri(), bill_copies=True), []
    assert await command.rebuild(settings, None, [batch_id(0)], said.append, write=False)
    assert len(said) == 1 + 2 * len(simulation.log.files)
    assert all("intact" in text for text in said[1:])


@pytest.mark.parametrize("models", [(), MODELS])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("status", [Status.CANCELLED, Status.EXPIRED])
async def test_copies_of_lines_that_were_not_run_get_error_lines(seed, status, models):
    """A cancelled or expired batch has the copies of the lines that were answered in time."""
    simulation, originals = simulation_of(seed, models, is_billed=False)
    lost = simulation.chance.choice(sorted(set(originals.values())))
    results = list(lines(simulation.chance, 0, TOTAL, models, {lost, *originals}))
    simulation.chance.shuffle(results)
    simulation.log.events += [*commands(0, TOTAL, models, originals), *results[: len(results) * 2 // 3]]
    if status is Status.CANCELLED:
        cancel = CancelRequested(batch_id=batch_id(0), at=NOW + 5)
        simulation.log.events.append((topics.COMMANDS.name, (), codec.encode(cancel)))
    await simulation.run(crashes_max=simulation.chance.randint(0, 6))
    found = Found(simulation, originals)
    found.check(is_billed=False)
    assert found.batch.status is status
    for place, original in originals.items():
        line = (found.output | found.errors)[place]
        not_run = original in found.errors and found.errors[original]["response"] is None
        assert (place in found.copied) is not not_run
        assert (line["error"] or {}).get("code") == (f"batch_{status}" if not_run else line["error"])


async def test_a_batch_whose_list_of_copies_is_not_whole_waits_and_says_so(monkeypatch):
    """It ends once the list is back; no line gets a wrong result meanwhile."""
    simulation, originals = simulation_of(1, (), is_billed=False)
    key = copies_key(batch_id(0))
    whole = simulation.store.objects[key]
    simulation.store.objects[key] = whole[: whole.rfind(b"\n", 0, -1) + 1]
    pauses = []

    def pause(failures, **_):
        pauses.append(failures)
        simulation.store.objects[key] = whole
        return 0.0

    monkeypatch.setattr(finalizer, "pause_seconds", pause)
    simulation.log.events += [
        *commands(0, TOTAL, (), originals), *lines(simulation.chance, 0, TOTAL, (), originals)
    ]  # fmt: skip
    await simulation.run(crashes_max=0)
    assert pauses
    Found(simulation, originals).check(is_billed=False)


async def test_the_merge_reads_few_parts_with_copies_at_once(monkeypatch):
    """However many there are, at any places."""
    monkeypatch.setattr(merge, "STREAMS_MAX", 3)
    simulation, originals = simulation_of(1, (), is_billed=False)
    read, opened, most, names = simulation.store.read, Counter(), 0, set()

    async def counted(key, start=0, end=None):
        nonlocal most
        is_copy = key.startswith("parts/") and int(key.split("/")[2][:10]) >= COPY_PARTS_FROM
        opened[key] += is_copy
        most = max(most, len(+opened))
        names.update([key] if is_copy else [])
        try:
            async for chunk in read(key, start, end):
                yield chunk
        finally:
            opened[key] -= is_copy

    monkeypatch.setattr(simulation.store, "read", counted)
    simulation.log.events += [
        *commands(0, TOTAL, (), originals), *lines(simulation.chance, 0, TOTAL, (), originals)
    ]  # fmt: skip
    await simulation.run(crashes_max=0)
    Found(simulation, originals).check(is_billed=False)
    assert len(names) > 9
    assert most == 3
