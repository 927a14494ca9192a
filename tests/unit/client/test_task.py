"""The tasks of `map` and `embed`: options and columns that cannot be used are refused before a sample."""

import re
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from tidemill.client.errors import UsageError
from tidemill.client.maps.task import ChatOptions, Task, chats, embeddings
from tidemill.tables import TableError
from tidemill.tables.sources.frames import FrameSource
from tidemill.tables.sources.opening import opened
from tidemill.tables.values import values_of

DECODED = "{{ x.decode() }}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text,answer\na,b\nc\n", "row 2: line 3"),
        ("text,answer\n" + "a,b\n" * 1_001 + "a\n", "more than 1,000 rows"),
    ],
)
def test_faulty_examples_are_refused(tmp_path: Path, content: str, said: str) -> None:
    """A row without a cell is not taken for one with an empty answer."""
    path = tmp_path / "examples.csv"
    path.write_text(content)
    options = ChatOptions(model="m", prompt="{{ text }}", examples=str(path))
    source = opened(str(path), {})
    with pytest.raises((TableError, UsageError), match=said):
        chats(source, "in.csv", (), options, {})


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([1]), "column x is int64, not text; a prompt makes a text of it: {{ x }}"),
        (pa.array([[1]]), "not text; a prompt makes a text of it: {{ x }}"),
        (pa.array([1]).dictionary_encode(), "not text; a prompt makes a text of it: {{ x }}"),
        *(
            (
                pa.array([b"abcd"], kind),
                f"{said}, not text: cast it to a string, or decode it in a prompt: {DECODED}",
            )
            for kind, said in (
                (pa.binary(), "large_binary"),
                (pa.large_binary(), "large_binary"),
                (pa.binary(4), "fixed_size_binary[4]"),
                (pa.binary_view(), "large_binary"),
            )
        ),
        *((pa.array(["a", None], kind), None) for kind in (pa.string(), pa.large_string(), pa.string_view())),
        (pa.array(["a"]).dictionary_encode(), None),
        (pa.nulls(1), None),
    ],
)
def test_a_column_without_texts_is_refused(column: pa.Array, said: str | None) -> None:
    """Before a sample, and with the way that takes it; a column of nulls may be one of texts."""
    source = FrameSource(pa.table({"x": column}))

    def task(**text: str | None) -> Task:
        return embeddings(source, "in", (), model="m", **{"column": None, "prompt": None, "more": {}} | text)

    if said is None:
        task(column="x")
        return
    with pytest.raises(UsageError, match=f"{re.escape(said)}$"):
        task(column="x")
    if DECODED in said:
        rows = next(iter(source.read(0))).batch
        row = {"x": values_of(rows.column(0))[0]}
        assert orjson.loads(task(prompt=DECODED).requests.line(1, row))["body"]["input"] == "abcd"


@pytest.mark.parametrize("field", ["embed_dtype", "endianness", "output_dtype"])
def test_vectors_of_other_numbers_are_refused(field: str) -> None:
    """They would be read as float32, and become wrong numbers."""
    source = FrameSource(pa.table({"x": ["a"]}))
    with pytest.raises(UsageError, match=f"^{field}: a table has vectors of float32"):
        embeddings(source, "in", (), model="m", column="x", prompt=None, more={field: "float16"})


@pytest.mark.parametrize("text", ["Rate {{ x }}", "Rate {{ x }}" * 99])
def test_a_prompt_is_a_file(text: str) -> None:
    """A user who writes the question itself learns so, also where it is too long for a name."""
    source = FrameSource(pa.table({"x": ["a"]}))
    with pytest.raises(UsageError, match=r"; name a file that has the text of the prompt$"):
        chats(source, "in", (), ChatOptions(model="m", prompt=Path(text)), {})


def test_an_unusual_name_of_a_column_is_quoted() -> None:
    """The advice works as it stands."""
    source = FrameSource(pa.table({"odd name": [1]}))
    with pytest.raises(UsageError, match=r"of it: \{\{ row\['odd name'\] \}\}$"):
        embeddings(source, "in", (), model="m", column="odd name", prompt=None, more={})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"column": "y"}, "y: no such column to embed; the columns are x"),
        ({"column": "x", "keep": ["y", "z"]}, "y, z: no such column to keep; the columns are x"),
        ({}, "name the text to embed: a column, or a prompt; the columns are x"),
    ],
)
def test_messages_suit_the_command_and_the_library(options: dict[str, Any], said: str) -> None:
    """The library has arguments in place of options."""
    source = FrameSource(pa.table({"x": ["a"]}))
    rest = {"column": None, "prompt": None, "more": {}} | options
    with pytest.raises(UsageError, match=f"^{said}$"):
        embeddings(source, "in", rest.pop("keep", ()), model="m", **rest)
