"""The queue of batches: at most the limit is at work, in order, also after crashes and late reads."""

import random

import pytest
from support.catalog import fixed_catalog

from tidemill.configuration.settings import Settings
from tidemill.ingest.app import Ingest
from tidemill.ingest.files.queue import REPORT_SECONDS, REPORTS_MAX, BatchQueue
from tidemill.schemas.log import codec
from tidemill.schemas.log.messages import BatchCreated, BatchRecord, Dequeued, Erasure, Queued
from tidemill.schemas.log.signing import Signer
from tidemill.schemas.resources.batch import Batch, Extras, Status
from tidemill.schemas.resources.waiting import Reason

NOW = 1_800_000_000
SETTINGS = Settings(
    projects={"one": {"limits": {"batches_at_work_max": 1}}, "two": {"limits": {"batches_at_work_max": 2}}}
)
MOST = {"one": 1, "two": 2}
SEEDS = range(300)
BATCHES = 6
STEPS = 150


def batch_of(number, status=Status.VALIDATING, **fields):
    return Batch(
        id=f"batch_{number:032x}", endpoint="/v1/embeddings", input_file_id="file-x", completion_window="24h",
        status=status, created_at=NOW, expires_at=NOW + 86_400, **fields,
    )  # fmt: skip


def queued(number, project):
    command = BatchCreated(project=project, batch=batch_of(number))
    return command.batch.id, codec.encode(Queued(command=command))


def published(number, project, status, **fields):
    batch = batch_of(number, status, **fields)
    return batch.id, codec.encode(BatchRecord(project=project, batch=batch))


def erased(number, project="one"):
    return batch_of(number).id, codec.encode(Erasure(project=project, at=NOW))


class Process:
    """A process of ingest, which reads the three topics at its own pace."""

    def __init__(self, world):
        self.world = world
        self.queue = BatchQueue(SETTINGS, lambda batch_id: world.owners[int(batch_id[-1], 16)] is self)
        self.seen = [0, 0, 0]
        self.read(until_end=True)

    def read(self, *, until_end=False):
        applies = (self.queue.fold, self.queue.batch, lambda key, value, _: self.queue.erased(key, value))
        places = list(enumerate(applies))
        self.world.chance.shuffle(places)
        for place, apply in places:
            log = self.world.logs[place]
            end = len(log) if until_end else self.world.chance.randint(self.seen[place], len(log))
            for offset in range(self.seen[place], end):
                if log[offset] is not None:
                    apply(*log[offset], offset)
            self.seen[place] = end


class World:
    """Two processes, the three topics, and the state of each batch."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.logs = [[], [], []]
        """Of the queue, the batches and the secrets; None where a record was compacted away."""
        self.owners = [None] * BATCHES
        self.projects = [self.chance.choice(("one", "two")) for _ in range(BATCHES)]
        self.processes = [Process(self) for _ in range(2)]
        self.owners = [self.chance.choice(self.processes) for _ in range(BATCHES)]
        self.created, self.at_work, self.complete, self.over = [], {}, set(), set()
        self.deleted = set()
        self.started = {"one": [], "two": []}
        self.kill_share = 0.3

    def create(self):
        """Deliver a command, for the first time or again."""
        number = self.chance.randrange(BATCHES)
        if self.chance.random() < 0.2 or not self.owners[number].queue.has(batch_of(number).id):
            self.logs[0].append(queued(number, self.projects[number]))
            if number not in self.created:
                self.created.append(number)

    def read(self):
        self.chance.choice(self.processes).read()

    def start(self):
        """Let a process start due batches; it may die before it has published all lines, or reported that."""
        place = self.chance.randrange(2)
        for entry in self.processes[place].queue.due():
            number, project = int(entry.batch_id[-2:], 16), entry.command.project
            if number in self.over:
                continue  # its lines would not run
            if number not in self.at_work:
                self.at_work[number] = project
                self.started[project].append(number)
                self.logs[1].append(published(number, project, Status.IN_PROGRESS))
            if self.chance.random() < self.kill_share:
                self._replace(place)
                return
            self.complete.add(number)
            if self.chance.random() < self.kill_share:
                self._replace(place)
                return
            self.logs[0].append((entry.batch_id, codec.encode(Dequeued(batch_id=entry.batch_id))))

    def end(self):
        """End a batch: one whose lines have run, or one that is cancelled while it waits."""
        if ready := [number for number in self.at_work if number in self.complete]:
            self._end(self.chance.choice(ready), Status.COMPLETED)
        waiting = [number for number in self.created if number not in self.at_work and number not in self.over]
        if waiting and self.chance.random() < 0.1:
            self._end(self.chance.choice(waiting), Status.CANCELLED)

    def delete(self):
        """Delete a batch that is over; its erasure is written before its tombstone."""
        if left := sorted(self.over - self.deleted):
            number = self.chance.choice(left)
            self.deleted.add(number)
            self.logs[2].append(erased(number, self.projects[number]))
            self.logs[1].append((batch_of(number).id, None))

    def compact(self):
        """Let the broker compact the batches: it keeps the last record of each, but no tombstone."""
        log = self.logs[1]
        last = {record[0]: offset for offset, record in enumerate(log) if record is not None}
        for offset, record in enumerate(log):
            if record is not None and (last[record[0]] != offset or record[1] is None):
                log[offset] = None

    def move(self):
        """Rebalance."""
        self.owners[self.chance.randrange(BATCHES)] = self.chance.choice(self.processes)

    def check(self):
        for project, most in MOST.items():
            assert list(self.at_work.values()).count(project) <= most
        queue = [int(key[-2:], 16) for key, _ in self.logs[0]]
        assert self.started["one"] == sorted(self.started["one"], key=queue.index)

    def _end(self, number, status):
        self.at_work.pop(number, None)
        self.over.add(number)
        self.logs[1].append(published(number, self.projects[number], status))

    def _replace(self, place):
        gone, self.processes[place] = self.processes[place], Process(self)
        self.owners = [self.processes[place] if owner is gone else owner for owner in self.owners]


@pytest.mark.parametrize("seed", SEEDS)
def test_no_more_than_may_be_are_at_work(seed):
    """At every moment; they start in the order of the queue, all of them end, and none keeps a place."""
    world = World(seed)
    steps = (
        world.create, world.read, world.read, world.start, world.start, world.end, world.move, world.delete,
        world.compact,
    )  # fmt: skip
    for _ in range(STEPS):
        world.chance.choice(steps)()
        world.check()
    world.kill_share = 0
    for _ in range(STEPS):
        for process in world.processes:
            process.read(until_end=True)
        world.start()
        world.end()
        world.check()
    assert world.over == set(world.created)
    for process in (*world.processes, Process(world)):
        process.read(until_end=True)
        assert [key for key in process.queue._entries if int(key[-2:], 16) in world.over] == []


def test_a_published_batch_is_not_published_again():
    """By no later owner; one whose publication broke off is, also by the same process."""
    for is_dequeued in (False, True):
        queue = BatchQueue(SETTINGS, lambda _: True)
        queue.fold(*queued(1, "one"), 0)
        queue.batch(*published(1, "one", Status.IN_PROGRESS), 0)
        if is_dequeued:
            queue.fold(batch_of(1).id, codec.encode(Dequeued(batch_id=batch_of(1).id)), 1)
        assert len(queue.due()) == (not is_dequeued)
        assert not queue.due()
        queue.forget_start(batch_of(1).id)
        assert len(queue.due()) == 1


def test_a_batch_that_is_over_takes_no_place_again():
    """Its command may come again after its end, and with it its record of the queue."""
    queue = BatchQueue(SETTINGS, lambda _: True)
    queue.fold(*queued(1, "one"), 0)
    queue.batch(*published(1, "one", Status.COMPLETED), 0)
    for number in (1, 2):
        queue.fold(*queued(number, "one"), number)
    assert [entry.batch_id for entry in queue.due()] == [batch_of(2).id]


def test_a_deleted_batch_takes_no_place():
    """Also once the batches have neither its record nor its tombstone, whichever topic is read first."""
    for is_erased_first in (False, True):
        queue = BatchQueue(SETTINGS, lambda _: True)
        if is_erased_first:
            queue.erased(*erased(1))
        queue.fold(*queued(1, "one"), 0)
        queue.erased(*erased(1))
        queue.fold(*queued(2, "one"), 1)
        queue.erased(batch_of(2).id, None)
        queue.erased(f"{batch_of(2).id}/key", erased(2)[1])
        queue.erased(batch_of(2).id, b"{}")
        assert [entry.batch_id for entry in queue.due()] == [batch_of(2).id]


def test_deleted_batches_of_other_projects_are_not_remembered():
    """A process reads all deletions, and remembers a bounded number of batches that are over."""
    queue = BatchQueue(SETTINGS, lambda _: True)
    for number, project in enumerate(("free", "one", "two")):
        queue.erased(*erased(number, project))
        queue.batch(batch_of(number).id, None, number)
    assert [queue.has(batch_of(number).id) for number in range(3)] == [False, True, True]


def test_a_cancel_that_is_read_before_the_queue_counts():
    """The lines of the batch are not published."""
    queue = BatchQueue(SETTINGS, lambda _: True)
    queue.batch(*published(1, "one", Status.CANCELLING), 0)
    queue.fold(*queued(1, "one"), 0)
    assert not queue.due()


def test_batches_from_before_the_limit_count():
    """But not streams of producers, nor those of projects without a limit."""
    queue = BatchQueue(SETTINGS, lambda _: True)
    queue.batch(*published(1, "one", Status.IN_PROGRESS), 0)
    queue.batch(*published(2, "free", Status.IN_PROGRESS), 1)
    queue.batch(*published(3, "two", Status.IN_PROGRESS, tidemill=Extras(stream="s")), 2)
    for offset, (number, project) in enumerate([(4, "one"), (5, "two"), (6, "two"), (7, "two")]):
        queue.fold(*queued(number, project), offset)
    assert [entry.batch_id[-1] for entry in queue.due()] == ["5", "6"]
    queue.batch(batch_of(1).id, None, 3)
    assert [entry.batch_id[-1] for entry in queue.due()] == ["4"]
    assert (queue.most("one"), queue.most("free"), queue.is_needed) == (1, None, True)


def test_one_batch_is_one():
    """Where the words count batches."""
    queue = BatchQueue(SETTINGS, lambda _: True)
    for number in (1, 2):
        queue.fold(*queued(number, "one"), number)
    queue.due()
    [report] = queue.reports(1.0)
    assert report.waiting[0].message == (
        "The project may have 1 batch at work, and 1 of its unfinished batches is before this."
    )


def test_each_waiting_batch_has_its_place():
    """It is reported when it changes, else now and then; in bounded numbers."""
    queue = BatchQueue(SETTINGS, lambda _: True)
    for number in range(REPORTS_MAX + 4):
        queue.fold(*queued(number, "two"), number)
    queue.due()
    first, second = queue.reports(1.0), queue.reports(2.0)
    assert (len(first), len(second), queue.reports(3.0)) == (REPORTS_MAX, 2, [])
    (wait,) = first[3].waiting
    assert (wait.reason, first[3].batch_id) == (Reason.BATCHES_AT_WORK, batch_of(5).id)
    assert (
        wait.message == "The project may have 2 batches at work, and 5 of its unfinished batches are before this."
    )
    queue.batch(*published(4, "two", Status.CANCELLED), 0)
    moved = queue.reports(4.0)
    assert len(moved) == REPORTS_MAX - 1
    assert "4 of its" in moved[0].waiting[0].message
    assert len(queue.reports(5.0 + REPORT_SECONDS)) == REPORTS_MAX


def test_records_that_cannot_be_read_are_skipped():
    """Also one under another key."""
    queue = BatchQueue(SETTINGS, lambda _: True)
    for apply in (queue.fold, queue.batch):
        apply("batch_x", b"{", 0)
    queue.fold("batch_x", queued(1, "one")[1], 1)
    queue.fold(batch_of(1).id, None, 2)
    assert not queue.due()


def test_ingest_frees_the_places_of_deleted_batches(tmp_path):
    """It has read `tidemill.secrets`, which its keys come from, before the queue."""
    limited = {"one": {"limits": {"batches_at_work_max": 1}}}
    settings = Settings(kafka="127.0.0.1:9", data=tmp_path, verify_keys=[Signer.made().public], projects=limited)
    ingest = Ingest(settings, settings.cluster, fixed_catalog({}, {}))
    ingest._key_manager._apply(batch_of(1).id, codec.encode(Erasure(project="one", at=NOW)), 0)
    assert ingest._queue._queue.has(batch_of(1).id)
