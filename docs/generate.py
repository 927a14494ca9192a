# ruff: noqa: INP001 - a script
"""Writes the pages that are made from the code: `make docs`."""

from collections.abc import Iterable, Iterator
from decimal import Decimal
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from typer.main import get_command

from tidemill.__main__ import app
from tidemill.configuration.buckets import Bucket, BucketAccess
from tidemill.configuration.connections import Connections, Logs
from tidemill.configuration.custom_endpoints import CustomEndpoint
from tidemill.configuration.projects import Grant, Limits, OpenId, Project
from tidemill.configuration.security import Security
from tidemill.configuration.servers import Headroom, Hours, Model, Price, Server
from tidemill.configuration.settings import Settings
from tidemill.instruments import METRICS
from tidemill.metrics import ALL
from tidemill.schemas.log import acls, topics
from tidemill.schemas.log.acls import Operation, Resource
from tidemill.schemas.log.topics import DAY_MS, HOUR_MS, Topic

DOCS = Path(__file__).resolve().parent

_SETTINGS = """# Settings

<!-- made from src/tidemill/configuration/settings.py by `make docs` -->

Tidemill takes a setting from the environment (`TIDEMILL_` and its name in capitals, with two underscores between
the names of nested ones), else from `tidemill.toml`, else its default. In a variable a list is JSON, or texts with
commas between them, and a table is JSON; `null` sets nothing. Options of a command override all of these.
`--config` or `TIDEMILL_CONFIG` names the file; otherwise it is `tidemill.toml` of the current folder, which must
be a plain file of yours or root's that no other user may write to. A text has at most 4,096 characters, a name
255, and neither may contain control characters; a list or a table has at most 10,000 entries. Put a name in quotes
if it has anything but letters, digits, `-` and `_`. At the start, and in `tidemill doctor`, Tidemill lists every
setting that it cannot use and how to fix it. Each process also warns of variables that begin with `TIDEMILL_` and
are no settings: they have no effect. Those that Kubernetes makes for services are left out.

A running `tidemill up` applies changes of `servers` and `models` in the file. Changes of other settings take
effect at its next start; it names them.

These variables are no settings: `TIDEMILL_CACHE` names the folder of the embedded broker's files
(`~/.cache/tidemill`), `TIDEMILL_MAVEN` a mirror of Maven Central to download them from, and
`TIDEMILL_KEY_` begins the names of those with keys of servers (`api_key_env`). The client's commands read
`TIDEMILL_BASE_URL` and `TIDEMILL_API_KEY`.
"""

_COMMANDS = """# Commands

<!-- made from src/tidemill/cli and src/tidemill/__main__.py by `make docs` -->

`tidemill COMMAND --help` shows the same. `tidemill --install-completion` installs completion for the shell that
runs it: bash, zsh or fish. `tidemill --version` shows the version.

## Output

Commands that show data (`list`, `show`, `deliveries`, `usage`, `audit`) print a table on a terminal, those of an
open batch (`begin`, `append`, `seal`) a text. In a pipe, in a file and with `--json` all of these print one JSON
object per line; `usage --csv` prints CSV. A table fits 60 columns, and one that cannot be that narrow has a line
for each value.

All other commands print the same text everywhere: `keys create`, `keys token`, `webhooks create` and
`webhooks rotate` a secret, `produce` the id of the batch, `run`, `watch`, `rerun` and `replay` the results, `acls`
arguments for `kafka-acls.sh`, `doctor` and the operators' commands a report. `top` and `list --watch` need a
terminal.

Results go to stdout, everything else to stderr. There are no colours in a pipe, with `NO_COLOR`, with `TERM=dumb`,
and with `tidemill --no-color COMMAND`.

## Exit codes

`run`, `map`, `embed`, `watch`, `rerun` and `replay` end with

| code | meaning |
|---|---|
| 0 | all lines succeeded |
| 1 | the results do not match the receipt |
| 2 | the command cannot run as given |
| 3 | some lines failed; they are in the error file |
| 4 | the service refused the input |
| 5 | the batch expired |
| 6 | the batch was cancelled |
| 7 | the service could not be reached |
| 130 | Ctrl-C; the batch goes on |

All other commands end with 0 if they are done, with 2 if they cannot run as given or the service refuses, and with
7 if the service or Kafka does not answer. Those that check something end with 1 if it is not as it should be:
`doctor`, `verify`, `rebuild`, `purge`, `upgrade`, `servers test`, `models test` and `webhooks test`; the help of
each says when. `up` ends with 1, too, if its start fails.
"""

_LETTERS = {
    Operation.READ: "R",
    Operation.WRITE: "W",
    Operation.DESCRIBE: "D",
    Operation.CREATE: "N",
    Operation.DESCRIBE_CONFIGS: "C",
}

_SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("Top level", Settings),
    ("TLS and SASL of an external Kafka: `[kafka_security]`", Security),
    ("Log of each process: `[log]`", Logs),
    ("Bounds on clients: `[connections]`", Connections),
    ('An endpoint: `[endpoints."/v1/name"]`', CustomEndpoint),
    ("A server: `[servers.name]`, or an entry of a model's `backends`", Server),
    ("The hours of a server", Hours),
    ("Capacity left by others: `headroom`", Headroom),
    ('A model: `[models."name"]`', Model),
    ("A price", Price),
    ("Limits of a project: `[limits]`", Limits),
    ('A project: `[projects."name"]`', Project),
    ("Sign-in at the dashboard: `[openid]`", OpenId),
    ("What people with a claim may do: an entry of `grants`", Grant),
    ("A connection to buckets: `[buckets.name]`", Bucket),
    ("Folders of a project there: `[buckets.name.projects.name]`", BucketAccess),
)


def settings_page() -> str:
    """Return the page of settings."""
    return _SETTINGS + "".join(f"\n## {title}\n\n{_table(model)}" for title, model in _SECTIONS)


def commands_page() -> str:
    """Return the page of commands: each with its arguments and options."""
    found = dict(_commands("tidemill", get_command(app)))
    return _COMMANDS + "".join(f"\n## {name}\n\n{text}" for name, text in found.items())


def topics_table() -> str:
    """Return the table of topics."""
    head = ["| topic | key | value | written by | read by | kept |", "|---|---|---|---|---|---|"]
    listed = (*topics.TOPICS, topics.requests("<model>"), topics.express("<model>"))
    return "\n".join([*head, *map(_row, listed)])


def metrics_table() -> str:
    """Return the table of metrics, in the order of their definitions."""
    rows = ["| metric | kind | labels | stages | meaning |", "|---|---|---|---|---|"]
    for metric in METRICS:
        labels = " ".join(f"`{label}`" for label in metric.labels)
        stages = "each" if metric.stages == ALL else ", ".join(metric.stages)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {stages} | {metric.text} |")
    return "\n".join(rows)


def decisions_table() -> str:
    """Return a row for each decision: its number and its title."""
    rows = ["| | decision |", "|---|---|"]
    for path in sorted((DOCS / "decisions").glob("0*.md")):
        number, _, title = path.read_text("utf-8").partition("\n")[0].removeprefix("# ").partition(". ")
        rows.append(f"| {number} | [{title}]({path.name}) |")
    return "\n".join(rows)


def access_tables() -> str:
    """Return what each role may do with each topic and group."""
    rows = [f"| topic | {' | '.join(acls.ROLES)} |", f"|---|{'---|' * len(acls.ROLES)}"]
    for topic in acls.rows():
        cells = [" ".join(_LETTERS[operation] for operation in _may(role, topic)) for role in acls.ROLES]
        rows.append(f"| `{_name(topic)}` | {' | '.join(cells)} |")
    groups = ["| group | read by |", "|---|---|"]
    groups += [
        f"| `{name}{'*' * name.endswith('-')}` | {role} |" for role, names in acls.GROUPS.items() for name in names
    ]
    harms = ["| who may write to | can |", "|---|---|"]
    harms += [f"| `{_name(topic)}` | {topic.harm} |" for topic in (*topics.TOPICS, topics.requests("<model>"))]
    return "\n\n".join("\n".join(table) for table in (rows, groups, harms))


def pages() -> dict[Path, str]:
    """Return the text of each page that is made from the code, wholly or between two comments."""
    parts = {
        DOCS / "reference" / "access-lists.md": access_tables(),
        DOCS / "reference" / "metrics.md": metrics_table(),
        DOCS / "reference" / "topics.md": topics_table(),
        DOCS / "decisions" / "README.md": decisions_table(),
    }
    return {
        DOCS / "reference" / "settings.md": settings_page(),
        DOCS / "reference" / "commands.md": commands_page(),
        **{path: _put(path.read_text("utf-8"), part) for path, part in parts.items()},
    }


def _put(text: str, part: str) -> str:
    """Return the text with this part between its comments "made from" and "end"."""
    begin = text.index("-->\n", text.index("<!-- made from")) + len("-->\n")
    return f"{text[:begin]}\n{part}\n\n{text[text.index('<!-- end -->') :]}"


def _commands(name: str, command: Any) -> Iterator[tuple[str, str]]:
    below = getattr(command, "commands", {})
    if below and name != "tidemill" and command.invoke_without_command:
        yield name, _text(command)
    if below:
        for word, each in below.items():
            yield from _commands(f"{name} {word}", each)
        return
    yield name, _text(command)


def _text(command: Any) -> str:
    lines = [
        text.strip() if text.startswith("* ") else " ".join(text.split())
        for text in (command.help or "").split("\n\n")
    ]
    rows = [_parameter(each) for each in command.params if not each.hidden]
    table = "\n".join(["| argument or option | meaning |", "|---|---|", *rows]) if rows else "No options."
    return "\n\n".join([*lines, table]) + "\n"


def _parameter(parameter: Any) -> str:
    is_option = parameter.opts[0].startswith("-")
    names = (
        [*parameter.opts, *parameter.secondary_opts]
        if is_option
        else [parameter.metavar or parameter.name.upper()]
    )
    help_ = " ".join((parameter.help or "").split())
    default = parameter.default
    is_shown = parameter.show_default and isinstance(default, int | str) and not isinstance(default, bool)
    end = " Needed." if parameter.required and is_option else f" Default: `{default}`." if is_shown else ""
    return f"| {', '.join(f'`{name}`' for name in names)} | {help_}{end} |"


def _may(role: str, topic: Topic) -> list[Operation]:
    names = {topic.name, topics.REQUESTS_PREFIX, topics.EXPRESS_PREFIX}
    return [
        acl.operation
        for acl in acls.acls([role])
        if acl.resource is Resource.TOPIC and acl.name in names and topic.name.startswith(acl.name)
    ]


def _name(topic: Topic) -> str:
    if topic in topics.TOPICS:
        return topic.name
    return (
        topics.EXPRESS_PREFIX if topic.name.startswith(topics.EXPRESS_PREFIX) else topics.REQUESTS_PREFIX
    ) + "*"


def _row(topic: Topic) -> str:
    kept = (
        "compacted"
        if topic.compacted
        else "for good"
        if topic.retention_ms < 0
        else f"{topic.retention_ms // DAY_MS} d"
        if topic.retention_ms >= DAY_MS
        else f"{topic.retention_ms // HOUR_MS} h"
    )
    name = topic.name
    if topic not in topics.TOPICS:
        is_express = name.startswith(topics.EXPRESS_PREFIX)
        name = (topics.EXPRESS_PREFIX if is_express else topics.REQUESTS_PREFIX) + "<model>"
    cells = (f"`{name}`", topic.key, topic.value, ", ".join(topic.written_by), ", ".join(topic.read_by), kept)
    return f"| {' | '.join(cells)} |"


def _table(model: type[BaseModel]) -> str:
    rows = ["| name | default | meaning |", "|---|---|---|"]
    for plain, field in model.model_fields.items():
        name = field.alias or plain
        needed = field.is_required()
        default = "needed" if needed else f"`{_shown(field.get_default(call_default_factory=True))}`"
        values = _values(field.annotation, field.metadata)
        meaning = " ".join(f"{field.description or ''} {values and f'{values}.'}".split())
        rows.append(f"| `{name}` | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _values(kind: Any, metadata: Iterable[Any]) -> str:
    """Return the choices or the bounds of a setting of one value; empty if it has none."""
    inner = get_args(kind)
    match get_origin(kind):
        case found if found is Literal:
            return _choices(inner)
        case found if found in {Union, UnionType}:
            return ", ".join(filter(None, (_values(one, metadata) for one in inner)))
        case found if found is Annotated:
            return _values(inner[0], [each for one in inner[1:] for each in getattr(one, "metadata", [one])])
        case None if isinstance(kind, type) and issubclass(kind, Enum):
            return _choices(one.value for one in kind)
        case None if isinstance(kind, type) and issubclass(kind, int | float | Decimal) and kind is not bool:
            return _range(list(metadata))
    return ""


def _choices(values: Iterable[Any]) -> str:
    return f"One of {', '.join(f'`{one}`' for one in values)}"


def _range(metadata: Iterable[Any]) -> str:
    """Return the bounds of a number in words."""
    given = list(metadata)
    found = {name: getattr(one, name) for one in given for name in ("ge", "gt", "le") if hasattr(one, name)}
    # A text that becomes a number has its form in its meaning.
    if not found or any(isinstance(one, BeforeValidator) for one in given):
        return ""
    if "gt" in found:
        return f"Above {found['gt']}" + (f", at most {found['le']}" if "le" in found else "")
    return f"From {found['ge']} to {found['le']}" if "le" in found else f"At least {found['ge']}"


def _shown(value: object) -> str:
    match value:
        case None:
            return "none"
        case tuple() if value:
            return ", ".join(map(str, value))
        case tuple():
            return "[]"
        case dict() if value:
            return ", ".join(f"{name} {content}" for name, content in value.items())
        case BaseModel():
            return ", ".join(f"{name} {content}" for name, content in value)
        case _:
            return str(value)


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, "utf-8")
