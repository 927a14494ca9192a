"""Records about a batch that results read: it is created, it is accepted, and its lines."""

from collections import Counter

from tidemill.schemas.jsonl import line
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.log.messages import Accepted, BatchCreated, Grown, InputRef, Opened, Sealed
from tidemill.schemas.resources.batch import Batch, Extras, Status
from tidemill.schemas.resources.by_model import ModelLines

NOW = 1_790_000_000
BODIES = 9
BODY = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'


def batch_id(number):
    return f"batch_{number:032x}"


def model_of(index, models):
    """The model of a line in a batch of several: runs of any length."""
    return models[index * index // 7 % len(models)]


def original_of(index, models):
    """The first line that equals a line, in a batch with the same few bodies again and again."""
    mine = model_of(index, models)
    return next(other for other in range(index % BODIES, index + 1, BODIES) if model_of(other, models) == mine)


def commands(number, total, models=(), copies=()):
    """The command and the acceptance of a batch, some of whose lines are copies."""
    batch = Batch(
        id=batch_id(number),
        endpoint="/v1/chat/completions",
        input_file_id="file-x",
        completion_window="24h",
        status=Status.VALIDATING,
        created_at=NOW,
        expires_at=NOW + 3600,
    )
    created = BatchCreated(project="default", batch=batch, input=InputRef(key=f"files/in{number}", bytes=1))
    accepted = Accepted(batch_id=batch.id, total=total, model="m", copies=len(copies), at=NOW + 1)
    if models:
        counts = Counter(model_of(index, models) for index in range(total))
        copied = Counter(model_of(index, models) for index in copies)
        of_models = tuple(ModelLines(model=model, lines=counts[model], copies=copied[model]) for model in models)
        accepted = accepted.model_copy(update={"model": None, "models": of_models})
    return [
        (topics.COMMANDS.name, (), codec.encode(created)),
        (topics.OUTCOMES.name, ((codec.KIND, b"accepted"),), codec.encode(accepted)),
    ]


def lines(chance, number, total, models=(), copies=()):
    """Result lines in any order, some of them twice, many to a record; a record has lines of one model."""
    asked = [index for index in range(total) if index not in copies]
    if models:
        for model in models:
            yield from _records(
                chance, number, [index for index in asked if model_of(index, models) == model], model
            )
    else:
        yield from _records(chance, number, asked, "m")


def _records(chance, number, places, model):
    indices = [*places, *chance.choices(places, k=len(places) // 3)]
    chance.shuffle(indices)
    while indices:
        some, indices = indices[: (size := chance.randint(1, 8))], indices[size:]
        marks, texts = [], []
        for index in some:
            failed = index % 7 == 3
            text = line.answered(
                batch_id(number),
                index,
                b'"id-%d"' % index,
                status=400 if failed else 200,
                request_id="r",
                body=BODY,
            )
            marks.append(
                LineMark(
                    index=index, size=len(text), failed=failed, usage=(0, 0, 0, 0) if failed else (3, 0, 2, 0)
                )
            )
            texts.append(text)
        yield (
            topics.OUTCOMES.name,
            tuple(codec.lines_headers(batch_id(number), marks, model=model)),
            b"".join(texts),
        )


def _fact(fact):
    return (topics.OUTCOMES.name, ((codec.KIND, fact.kind.encode()),), codec.encode(fact))


def stream_facts(number, totals, cut=None):
    """Ingest's facts about a stream: it opens, grows, and is sealed."""
    batch = Batch(
        id=batch_id(number),
        endpoint="/v1/chat/completions",
        input_file_id="file-x",
        completion_window="24h",
        status=Status.IN_PROGRESS,
        created_at=NOW,
        in_progress_at=NOW,
        expires_at=NOW + 3600,
        tidemill=Extras(numbered=cut),
    )
    source = InputRef(key=f"files/in{number}", bytes=1)
    return [
        _fact(Opened(project="default", batch=batch)),
        *(_fact(Grown(batch_id=batch.id, total=total, model="m")) for total in totals),
        _fact(Sealed(batch_id=batch.id, total=totals[-1], model="m", input=source)),
    ]


def grown(chance, facts, results):
    """These facts and lines in any order in which no line comes before the fact that makes room for it."""
    found, total, left = [], 0, list(results)
    for fact in facts:
        found.append(fact)
        total = max(total, getattr(codec.decode_fact(fact[2]), "total", 0))
        for record in list(left):
            _, marks = codec.lines_marks(record[1], len(record[2]))
            if chance.random() < 0.5 and max(mark.index for mark in marks) < total:
                found.append(record)
                left.remove(record)
    return found + left
