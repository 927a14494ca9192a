"""Splitting a file, the journal of its run, and joining the results."""

import hashlib
import os
import time
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict

from tidemill.client.errors import Exit, UsageError
from tidemill.client.files import join
from tidemill.client.http.client import Bounds
from tidemill.client.runs.journal import KEPT_SECONDS, Job, Journal, Plan, Step, _locked, folder_of
from tidemill.client.runs.outcome import BatchResult, verdict
from tidemill.client.runs.paths import endpoint_of
from tidemill.client.runs.plan import FAULTS_MAX, Shard, cut, fits
from tidemill.schemas.jsonl.lines import Splitter

CHAT = "/v1/chat/completions"

JOB = Job(sha256="0", base_url="http://x/v1", endpoint="/v1/embeddings", window="24h")
blanks = st.sampled_from([b"", b"\n", b" \r\n\n", b"\t"])


def request(number: int, pad: int = 0) -> bytes:
    """A line."""
    return orjson.dumps({"custom_id": f"r{number}", "pad": "x" * pad})


def lines_of(content: bytes) -> list[bytes]:
    """The lines that ingest would see."""
    splitter = Splitter()
    return [line.data for line in [*splitter.feed(content), *splitter.finish()]]


@settings(deadline=None)
@given(
    pads=st.lists(st.integers(0, 60), min_size=1, max_size=30),
    gaps=st.lists(blanks, min_size=31, max_size=31),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    bounds=st.builds(Bounds, lines_max=st.integers(1, 8), bytes_max=st.integers(40, 400)),
)
def test_the_pieces_are_the_file(tmp_path_factory, pads, gaps, mark, bounds):
    """Each begins with a line, keeps the bounds or is one line, and has the number of its first line."""
    folder = tmp_path_factory.mktemp("cut")
    source = folder / "in.jsonl"
    content = mark + b"\n".join(
        gap + request(n, pad) for n, (pad, gap) in enumerate(zip(pads, gaps, strict=False))
    )
    source.write_bytes(content)
    shards = cut(source, bounds, endpoint=CHAT)
    assert b"".join(content[shard.start : shard.end] for shard in shards) == content
    assert [shard.number for shard in shards] == list(range(len(shards)))
    whole = lines_of(content)
    for shard in shards:
        found = lines_of(content[shard.start : shard.end])
        assert found == whole[: len(found)]
        assert len(found) == shard.lines <= bounds.lines_max
        used = content[shard.start : shard.end].rstrip()
        assert len(used) <= bounds.bytes_max or shard.lines == 1
        first = content.splitlines(keepends=True)[shard.line - 1] if shard.number else whole[0]
        assert found[0] in first
        whole = whole[len(found) :]
    assert not whole
    if fits(source, bounds, endpoint=CHAT):
        assert len(shards) == 1


@given(
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=20),
    inputs_max=st.integers(1, 6),
    as_tokens=st.booleans(),
)
def test_a_piece_has_a_bounded_number_of_inputs(tmp_path_factory, counts, inputs_max, as_tokens):
    """A list of texts counts each text, a list of tokens is one; a line above the bound is a shard of its own."""
    folder = tmp_path_factory.mktemp("inputs")
    source, bounds = folder / "in.jsonl", Bounds(lines_max=1000, bytes_max=1 << 20, inputs_max=inputs_max)
    given = [[7] * count if as_tokens else ["x"] * count for count in counts]
    lines = ({"custom_id": f"r{number}", "body": {"input": each}} for number, each in enumerate(given))
    source.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    sizes = [1 if as_tokens else count or 1 for count in counts]
    shards = cut(source, bounds, endpoint="/v1/embeddings")
    for shard in shards:
        mine = sizes[shard.line - 1 : shard.line - 1 + shard.lines]
        assert sum(mine) <= inputs_max or shard.lines == 1
    assert fits(source, bounds, endpoint="/v1/embeddings") == (len(shards) == 1)
    assert sum(shard.lines for shard in shards) == len(counts)


@settings(deadline=None)
@given(names=st.lists(st.text(max_size=3), max_size=50))
def test_duplicate_ids_are_found(tmp_path_factory, names):
    """The error names each with the line that has the id first."""
    source = tmp_path_factory.mktemp("ids") / "in.jsonl"
    source.write_bytes(b"\n".join(orjson.dumps({"custom_id": name}) for name in names))
    duplicates = [
        f"line {line}: it has the custom_id of line {names.index(name) + 1}"
        for line, name in enumerate(names, start=1)
        if names.index(name) + 1 < line
    ]
    if not duplicates:
        cut(source, Bounds(lines_max=7), endpoint=CHAT)
        return
    with pytest.raises(UsageError) as caught:
        cut(source, Bounds(lines_max=7), endpoint=CHAT)
    assert str(caught.value).split("\n  ")[1:] == duplicates[:FAULTS_MAX]


def test_faulty_lines_are_named_before_anything_runs(tmp_path):
    """Invalid lines, and an id that occurs in two shards."""
    source, bounds = tmp_path / "in.jsonl", Bounds(lines_max=1, bytes_max=1000)
    source.write_bytes(b'{"custom_id": "a"}\n\nnone\n{"custom_id": 5}\n')
    with pytest.raises(UsageError, match=r"(?s)line 3: .*line 4: "):
        cut(source, bounds, endpoint=CHAT)
    source.write_bytes(b'{"custom_id": "a"}\n{"custom_id": "b"}\n{"custom_id": "a"}\n')
    with pytest.raises(UsageError, match=r"(?s)no line was run\..*line 3: it has the custom_id of line 1"):
        cut(source, bounds, endpoint=CHAT)
    with pytest.raises(UsageError, match=r"no line was appended\."):
        cut(source, bounds, endpoint=CHAT, done="appended")


@pytest.mark.parametrize(("name", "has_hint"), [("t.csv", True), ("T.CSV", True), ("t.jsonl", False)])
def test_a_table_is_for_other_commands(tmp_path, name, *, has_hint):
    """The message of a file that holds no requests names them."""
    source = tmp_path / name
    source.write_text("text\nabc\n")
    with pytest.raises(UsageError, match="is not a batch request") as caught:
        endpoint_of(source)
    assert ("tidemill map" in str(caught.value)) is has_hint


def test_a_file_that_fits_into_one_batch(tmp_path):
    """By bytes and by lines; the last line needs no newline."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"a\nb")
    assert fits(source, Bounds(lines_max=2, bytes_max=3), endpoint=CHAT)
    assert not fits(source, Bounds(lines_max=1, bytes_max=3), endpoint=CHAT)
    assert not fits(source, Bounds(lines_max=2, bytes_max=2), endpoint=CHAT)


def test_a_removed_journal_is_left_alone(tmp_path):
    """Another run may have created the folder again."""
    folder = tmp_path / "out.jsonl.tidemill"
    with Journal(folder) as first:
        with pytest.raises(UsageError, match="another run"), Journal(folder):
            pass
        first.remove()
        folder.mkdir()
    assert folder.exists()
    with (folder / "journal.jsonl").open("a+b") as old:
        (folder / "journal.jsonl").unlink()
        assert not _locked(old, folder / "journal.jsonl")
        (folder / "journal.jsonl").touch()
        assert not _locked(old, folder / "journal.jsonl")
    with Journal(folder):
        pass
    assert not folder.exists()


@settings(deadline=None)
@given(
    steps=st.lists(st.builds(Step, shard=st.integers(0, 3), batch=st.none() | st.text(max_size=5)), max_size=10),
    torn=st.integers(0, 30),
)
def test_the_journal_survives_an_incomplete_last_line(tmp_path_factory, steps, torn):
    """A crash left it; the next step follows the last complete line."""
    folder = tmp_path_factory.mktemp("journal")
    with Journal(folder) as journal:
        journal.start(Plan(job=JOB, window="24h", key="k", shards=[]))
        for step in steps:
            journal.note(step)
    with (folder / "journal.jsonl").open("ab") as file:
        file.write(b'{"shard":9,"batch":"torn off by a cut'[:torn])
    for _ in range(2):
        with Journal(folder) as journal:
            for shard in range(4):
                last = [step for step in steps if step.shard == shard]
                assert journal.step(shard) == (last[-1] if last else Step(shard=shard))
            assert journal.step(9) in {Step(shard=9), Step(shard=9, batch="after")}
            journal.note(Step(shard=9, batch="after"))


def test_only_the_same_job_resumes_a_plan(tmp_path):
    """Another input or service is another job; one process locks the folder."""
    plan = Plan(job=JOB, window="24h", key="k", shards=[Shard(number=0, start=0, end=1, lines=1, line=1)])
    with Journal(tmp_path / "j") as journal:
        assert journal.plan(JOB) is None
        journal.start(plan)
        assert journal.plan(JOB) == plan
        with pytest.raises(UsageError, match="another run is using it"), Journal(tmp_path / "j"):
            pass
        with pytest.raises(UsageError, match="another input"):
            journal.plan(Job(sha256="1", base_url="http://x/v1", endpoint="/v1/embeddings", window="24h"))
        journal.note(Step(shard=0, batch="b"))
        assert (journal.has_batches, journal.delivers) == (True, False)
        journal.deliver()
    with Journal(tmp_path / "j") as journal:
        assert journal.delivers
        journal.forget()
        assert (journal.plan(JOB), journal.has_batches, journal.delivers) == (None, False, False)
    assert not (tmp_path / "j").exists()


@given(contents=st.lists(st.none() | st.sampled_from([b"a\n", b"b\nc\n", b"d" * 5000 + b"\n"]), max_size=6))
def test_results_are_joined_in_order(tmp_path_factory, contents):
    """The receipt is that of the whole; without a line there is no file."""
    folder = tmp_path_factory.mktemp("join")
    parts = [folder / str(number) for number in range(len(contents))]
    for part, content in zip(parts, contents, strict=True):
        if content is not None:
            part.write_bytes(content)
    target = folder / "out.jsonl"
    target.write_bytes(b"of an earlier run")
    receipt = join(parts, target)
    whole = b"".join(content or b"" for content in contents)
    assert (target.read_bytes() if target.exists() else b"") == whole
    if receipt is None:
        assert not whole
    else:
        assert (receipt.bytes, receipt.lines) == (len(whole), whole.count(b"\n"))
        assert receipt.sha256 == hashlib.sha256(whole).hexdigest()
    assert {path.name for path in folder.iterdir()} <= {part.name for part in parts} | {"out.jsonl"}


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([{"status": "completed"}], Exit.OK),
        ([{"status": "completed"}, {"status": "completed", "failed": 1}], Exit.SOME_FAILED),
        ([{"status": "completed", "failed": 1}, {"status": "cancelled"}], Exit.CANCELLED),
        ([{"status": "expired"}, {"status": "cancelled"}], Exit.EXPIRED),
        ([{"status": "expired", "damage": ("x",)}, {"status": "expired"}], Exit.INEXACT),
        ([{"status": "failed"}, {"status": "completed", "damage": ("x",)}], Exit.FAILED),
    ],
)
def test_the_exit_code_of_a_run_is_that_of_its_worst_batch(ends: list[dict], code: Exit) -> None:
    """In the order of severity."""
    assert verdict([BatchResult(batch="b", began_at=1, ended_at=2, **end) for end in ends]) is code


def test_the_folder_of_a_journal(tmp_path: Path) -> None:
    """Beside the output; for stdout in the state directory, where old journals are removed."""
    assert folder_of(Path("a/out.jsonl"), JOB, {}) == Path("a/out.jsonl.tidemill")
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    folder, other = folder_of(None, JOB, environ), folder_of(None, Job(**{**asdict(JOB), "window": "7d"}), environ)
    assert folder.parent == other.parent == tmp_path / "tidemill"
    assert folder != other
    folder.mkdir(parents=True)
    assert folder_of(None, JOB, environ).exists()
    os.utime(folder, (1, time.time() - KEPT_SECONDS - 60))
    assert not folder_of(None, JOB, environ).exists()
