"""JSONL: the output has one type a column, and a prompt the row's own value."""

import tracemalloc
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from tidemill.client.maps.failed_rows import _Failed
from tidemill.client.maps.task import embeddings
from tidemill.tables.json_types import FIELDS_MAX
from tidemill.tables.sources.opening import opened
from tidemill.tables.sources.rows import Source
from tidemill.tables.templates import Template

ROW = {"text": 'Hello\n"world"', "n": 1, "share": 0.5, "yes": True, "tags": ["x", "y"], "who": {"a": [{"b": 1}]}}
PROMPT = (
    "{{ text }}|{{ n + 1 }}|{{ share }}|{{ yes }}|{% for tag in tags %}{{ tag }};{% endfor %}|{{ who.a[0].b }}"
    "|{{ who.other is none }}|{{ missing is none }}"
)


def written(folder: Path, *rows: dict[str, Any]) -> Source:
    """A source with these rows."""
    path = folder / "in.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return opened(str(path), {})


def values(source: Source, names: Sequence[str], start: int = 0) -> list[dict[str, Any]]:
    """What prompts see of each row."""
    return [row for rows in source.read(start) for row in rows.values(names)]


@pytest.mark.parametrize("column", ROW)
@pytest.mark.parametrize("odd", [2024, 2.5, True, "x", [1], [], {"c": 1}, {}, None, 1 << 63])
def test_an_odd_row_changes_the_prompt_of_no_other(tmp_path: Path, column: str, odd: Any) -> None:
    """Be its value of another kind, or an object with other fields; a field that a row lacks is null."""
    fuller = {**ROW, "who": {**ROW["who"], "other": "z"}, "missing": 1}
    for rows in ([ROW, fuller], [ROW, fuller, {**ROW, column: odd}]):
        source = written(tmp_path, *rows)
        template = Template(PROMPT, source.schema.names, name="p")
        found = values(source, template.columns(source.schema.names))
        assert [template.render(row) for row in found[:2]] == [
            'Hello\n"world"|2|0.5|True|x;y;|1|True|True', 'Hello\n"world"|2|0.5|True|x;y;|1|False|False',
        ]  # fmt: skip


def test_an_odd_row_changes_no_vector(tmp_path: Path) -> None:
    """From any start, and in the rows that failed; the output has JSON where the kinds differ."""
    source = written(tmp_path, {"text": "Hello\nworld"}, {"text": "plain"}, {"text": "5"}, {"text": ["x"]})
    task = embeddings(source, "in", (), model="m", column="text", prompt=None, more={})
    for start in range(4):
        found = [row["text"] for row in values(source, ["text"], start)]
        assert found == ["Hello\nworld", "plain", "5", ["x"]][start:]
        lines = [task.requests.line(1, {"text": text}) for text in found if isinstance(text, str)]
        assert [orjson.loads(line)["body"]["input"] for line in lines] == found[:-1]
    failed = _Failed(source, array("q", [1, 3]))
    assert [row["text"] for row in values(failed, ["text"])] == ["plain", ["x"]]
    assert [row["text"] for rows in source.read(0) for row in rows.batch.to_pylist()] == [
        '"Hello\\nworld"', '"plain"', '"5"', '["x"]',
    ]  # fmt: skip


def test_an_object_with_too_many_names_stays_as_it_is(tmp_path: Path) -> None:
    """Ids as names would add all of them to each row."""
    source = written(
        tmp_path, *({"text": "a", "by": {str(10 * at + one): 1 for one in range(10)}} for at in range(200))
    )
    assert [len(row["by"]) for row in values(source, ["by"])] == [10] * 200


@pytest.mark.parametrize("order", [1, -1])
def test_their_number_counts_and_not_their_order(tmp_path: Path, order: int) -> None:
    """Names that came before the limit is reached complete no object either, nor do those within."""
    rows: list[dict[str, Any]] = [{"by": {str(at): {"a": 1}}} for at in range(FIELDS_MAX + 1)]
    rows += [{"by": {"0": {"b": 1}}}, {"by": {"x": {"b": 1}}}]
    source = written(tmp_path, *rows[::order])
    assert values(source, ["by"]) == rows[::order]
    fewer = written(tmp_path, *rows[:-2][:FIELDS_MAX])
    assert {len(row["by"]) for row in values(fewer, ["by"])} == {FIELDS_MAX}


@pytest.mark.parametrize("last", ["a text makes the column JSON", []])
def test_one_row_at_a_time_is_completed(tmp_path: Path, last: Any) -> None:
    """Objects with a field each, of many names: with all names a batch has hundreds of times its bytes."""
    rows: list[dict[str, Any]] = [
        {"of": [{str((at * 100 + one) % 900): 1} for one in range(100)], "other": at} for at in range(60)
    ]
    source = written(tmp_path, *rows, {"of": last})
    tracemalloc.start()
    try:
        count = sum(len(row["of"]) for rows in source.read(0) for row in rows.values(["of"]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count >= 60 * 100
    assert peak < 64 << 20
    batch = next(source.read(0))
    assert next(iter(batch.values(["other"]))) == {"other": 0}
