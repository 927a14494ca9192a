"""Makes a task from the options of the command: prompts, examples, a schema, further fields."""

import hashlib
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
from pyarrow import types
from pydantic import BaseModel

from tidemill.client.errors import UsageError
from tidemill.tables import RowError, TableError
from tidemill.tables.columns import ANSWER, ChatReader, Reader, VectorReader
from tidemill.tables.pictures import SIDE_PIXELS
from tidemill.tables.requests import NOT_FLOAT32, Chats, Embeddings, Requests
from tidemill.tables.sources.opening import opened
from tidemill.tables.sources.rows import Source, values
from tidemill.tables.templates import Template, reference

TEXT_BYTES_MAX: Final = 4 << 20
EXAMPLES_MAX: Final = 1_000
LAYOUT: Final = 2
"""Version of the requests; it changes if the same options lead to other requests."""


_TEXTS: Final = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
_BYTES: Final = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)

Schema = str | Mapping[str, Any] | type[BaseModel]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A table, and how to ask about each of its rows.

    Attributes:
        name: Name of the table in messages.
        source: Its rows.
        kept: Columns of the source that the output has.
        requests: Makes the requests.
        reader: Reads the answers.
        repairs: Times that an answer which does not fit the schema is asked for again.
    """

    name: str
    source: Source
    kept: tuple[str, ...]
    requests: Requests
    reader: Reader
    repairs: int = 0


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Options of `map`.

    Attributes:
        model: The model.
        prompt: File with the template of the question, or its text.
        system: File with the system prompt, or its text.
        examples: A table with the columns of the source and the column `answer`.
        schema: File with a JSON Schema, `module:Class` of a Pydantic model, the schema, or the model.
        images: Columns with pictures, besides those of the source.
        side: Bound of a picture's longer side, in pixels.
        repairs: Times that an answer which does not fit the schema is asked for again.
        more: More fields of each request.
    """

    model: str
    prompt: Path | str | None = None
    system: Path | str | None = None
    examples: str | None = None
    schema: Schema | None = None
    images: Sequence[str] = ()
    side: int = SIDE_PIXELS
    repairs: int = 2
    more: Mapping[str, Any] = field(default_factory=dict)


def chats(
    source: Source, name: str, keep: Sequence[str], options: ChatOptions, environ: Mapping[str, str]
) -> Task:
    """The task of `map`; with `keep` only these columns of the source are in the output.

    Raises:
        UsageError: A file or an option is unusable.
        TableError: A template or the table of examples is unusable.
        SchemaError: The schema is invalid, or exceeds the bounds.
    """
    names = source.schema.names
    images = tuple(dict.fromkeys((*source.images, *options.images)))
    _check_columns(images, names, "of pictures")
    if options.prompt is None and not images:
        raise UsageError("the prompt is missing: a question about each row, like: Is this review good? {{ text }}")
    prompt = None if options.prompt is None else _template(options.prompt, names)
    schema = None if options.schema is None else loaded_schema(options.schema)
    requests = Chats(
        model=options.model,
        prompt=prompt,
        opening=_opening(options, prompt, environ),
        schema=schema,
        images=images,
        side=options.side,
        more=options.more,
    )
    return Task(
        name=name,
        source=source,
        kept=_kept(source, keep),
        requests=requests,
        reader=ChatReader(schema),
        repairs=options.repairs if schema else 0,
    )


def embeddings(
    source: Source,
    name: str,
    keep: Sequence[str],
    *,
    model: str,
    column: str | None,
    prompt: Path | str | None,
    more: Mapping[str, Any],
) -> Task:
    """The task of `embed`; with `keep` only these columns of the source are in the output.

    Raises:
        UsageError: An option is unusable.
        TableError: The template is unusable.
    """
    names = source.schema.names
    if unfit := sorted(NOT_FLOAT32 & more.keys()):
        raise UsageError(f"{', '.join(unfit)}: a table has vectors of float32; remove the field")
    if (column is None) == (prompt is None):
        raise UsageError(f"name the text to embed: a column, or a prompt; the columns are {', '.join(names)}")
    if prompt is not None:
        text: str | Template = _template(prompt, names)
    else:
        text = str(column)
        _check_columns([text], names, "to embed")
        _check_text(source, text)
    requests = Embeddings(model=model, source=text, more=more)
    return Task(name=name, source=source, kept=_kept(source, keep), requests=requests, reader=VectorReader())


def identity(task: Task) -> str:
    """A hash of everything that determines the requests and the output columns."""
    known = f"{LAYOUT}\0{task.source.fingerprint}\0{task.requests.identity()}\0{task.kept}\0{task.repairs}"
    return hashlib.sha256(known.encode("utf-8", "surrogatepass")).hexdigest()


def _kept(source: Source, chosen: Sequence[str]) -> tuple[str, ...]:
    _check_columns(chosen, source.schema.names, "to keep")
    return tuple(dict.fromkeys(chosen)) or source.kept


def loaded_schema(given: Schema) -> dict[str, Any]:
    """The JSON Schema in a file, or of a Pydantic class (`module:Class`).

    Raises:
        UsageError: There is none.
    """
    if isinstance(given, Mapping):
        return dict(given)
    return given.model_json_schema() if isinstance(given, type) else _named_schema(given)


def _named_schema(name: str) -> dict[str, Any]:
    module, is_class, attribute = name.partition(":")
    if is_class and module.replace(".", "").isidentifier() and not Path(name).exists():
        return _schema_of_class(module, attribute)
    try:
        found = orjson.loads(_text(Path(name)))
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{name} has no JSON Schema, which is an object")
    return found


def _schema_of_class(module: str, attribute: str) -> dict[str, Any]:
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UsageError(f"the schema {module}:{attribute}: {error}") from error
    finally:
        sys.path.pop(0)
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise UsageError(f"the schema {module}:{attribute} is not a Pydantic model")
    return found.model_json_schema()


def _opening(options: ChatOptions, prompt: Template | None, environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """The messages that all requests begin with."""
    messages = [{"role": "system", "content": _text(options.system)}] if options.system else []
    if options.examples is None:
        return messages
    source = opened(options.examples, environ)
    if prompt is None or ANSWER not in source.schema.names:
        raise UsageError(f"--examples {options.examples} needs --prompt and a column {ANSWER!r}")
    found = (row for rows in source.read(0) for row in values(rows))
    for number, (_, row, fault) in enumerate(found, start=1):
        if number > EXAMPLES_MAX:
            raise UsageError(f"--examples {options.examples} has more than {EXAMPLES_MAX:,} rows")
        if fault is not None:
            raise TableError(f"{options.examples}, row {number}: {fault}")
        try:
            question = prompt.render(row)
            answer = row[ANSWER]
            text = answer if isinstance(answer, str) else orjson.dumps(answer).decode()
        except (RowError, orjson.JSONEncodeError) as error:
            raise TableError(f"{options.examples}, row {number}: {error}") from error
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    return messages


def _template(given: Path | str, names: Sequence[str]) -> Template:
    return Template(_text(given), names, name=str(given) if isinstance(given, Path) else "the prompt")


def _text(given: Path | str) -> str:
    """The text of a file, or the text itself."""
    if isinstance(given, str):
        return given
    path = given
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a file that has the text of the prompt") from error
    if len(content) > TEXT_BYTES_MAX:
        raise UsageError(f"{path} has more than {TEXT_BYTES_MAX:,} bytes")
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start + 1} is not UTF-8") from error


def _check_text(source: Source, column: str) -> None:
    kind = whole = source.schema.field(column).type
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        kind = kind.value_type
    if any(is_kind(kind) for is_kind in _TEXTS):
        return
    value = reference(column)
    said = f"the column {column} is {whole}, not text"
    if any(is_kind(kind) for is_kind in _BYTES):
        raise UsageError(f"{said}: cast it to a string, or decode it in a prompt: {{{{ {value}.decode() }}}}")
    raise UsageError(f"{said}; a prompt makes a text of it: {{{{ {value} }}}}")


def _check_columns(chosen: Sequence[str], names: Sequence[str], use: str) -> None:
    if missing := [name for name in chosen if name not in names]:
        raise UsageError(f"{', '.join(missing)}: no such column {use}; the columns are {', '.join(names[:50])}")
