"""Records about a batch that results read: it is created, it is accepted, and its lines."""

from tidemill.schemas.jsonl import line
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.codec import LineMark
from tidemill.schemas.log.messages import Accepted, BatchCreated, InputRef
from tidemill.schemas.resources.batch import Batch, Status

NOW = 1_790_000_000
BODY = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'


def batch_id(number):
    return f"batch_{number:032x}"


def commands(number, total):
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
    accepted = Accepted(batch_id=batch.id, total=total, model="m", at=NOW + 1)
    return [
        (topics.COMMANDS.name, (), codec.encode(created)),
        (topics.OUTCOMES.name, ((codec.KIND, b"accepted"),), codec.encode(accepted)),
    ]


def lines(chance, number, total):
    """Result lines in any order, some of them twice, many to a record."""
    indices = [*range(total), *chance.choices(range(total), k=total // 3)]
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
        yield (topics.OUTCOMES.name, tuple(codec.lines_headers(batch_id(number), marks)), b"".join(texts))
