# ruff: noqa: INP001 - a script
"""Writes the pages that are made from the code: `make docs`."""

from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from tidemill.configuration.connections import Connections
from tidemill.configuration.schedule import Hours
from tidemill.configuration.security import Security
from tidemill.configuration.servers import Backend, Model, Price, Spare
from tidemill.configuration.settings import Limits, Project, Settings
from tidemill.schemas.log import acls, topics
from tidemill.schemas.log.acls import Operation, Resource
from tidemill.schemas.log.topics import DAY_MS, Topic

DOCS = Path(__file__).resolve().parent

_HEAD = """# Settings

<!-- made from src/tidemill/configuration/settings.py by `make docs` -->

A setting comes from the environment (`TIDEMILL_` and its name in capitals; two underscores between the names of
nested ones), else from `tidemill.toml` (its name), else from the default. The options of a command go before all
of these. The file is the one that `--config` or `TIDEMILL_CONFIG` names, else `tidemill.toml` of the current
folder. A text has at most 4,096 characters, a name 255, and neither a control character; a list or a table has at
most 10,000 entries; a name with anything but letters, digits, `-` and `_` stands in quotes. What cannot be used is
said at the start, each with its name and how to mend it; `tidemill doctor` says the same.

Besides these, `TIDEMILL_CACHE` names the folder where the embedded broker's files are kept (`~/.cache/tidemill`),
and the client's commands read `TIDEMILL_BASE_URL` and `TIDEMILL_API_KEY`.
"""

_BEGIN = "<!-- access lists: made from schemas/log/acls.py by `make docs` -->"
_END = "<!-- end of the access lists -->"
_LETTERS = {
    Operation.READ: "R",
    Operation.WRITE: "W",
    Operation.DESCRIBE: "D",
    Operation.DESCRIBE_CONFIGS: "C",
}

_SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("All", Settings),
    ("How to get into an external Kafka: `[kafka_security]`", Security),
    ("What clients' connections may take: `[connections]`", Connections),
    ('A model: `[models."name"]`', Model),
    ("A backend of a model", Backend),
    ("The hours of a backend", Hours),
    ("What others leave of a backend: `spare`", Spare),
    ("A price", Price),
    ("What a project may have: `[limits]`", Limits),
    ('A project: `[projects."name"]`', Project),
)


def settings_page() -> str:
    """The page of settings."""
    return _HEAD + "".join(f"\n## {title}\n\n{_table(model)}" for title, model in _SECTIONS)


def topics_rows() -> list[str]:
    """The rows of the table of topics, as docs/explanation/architecture.md has them."""
    return [_row(topic) for topic in (*topics.TOPICS, topics.requests("<model>"), topics.express("<model>"))]


def access_tables() -> str:
    """What each role may do with each topic and group, for docs/how-to/cluster.md."""
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


def cluster_page(text: str) -> str:
    """The page of clusters with these tables in it."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{access_tables()}\n\n{_END}{after}"


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
        default = "needed" if field.default is PydanticUndefined else f"`{_shown(field.default)}`"
        rows.append(f"| `{name}` | {default} | {' '.join((field.description or '').split())} |")
    return "\n".join(rows) + "\n"


def _shown(value: object) -> str:
    match value:
        case None:
            return "none"
        case tuple():
            return ", ".join(map(str, value))
        case BaseModel():
            return ", ".join(f"{name} {content}" for name, content in value)
        case _:
            return str(value)


if __name__ == "__main__":
    cluster = DOCS / "how-to" / "cluster.md"
    cluster.write_text(cluster_page(cluster.read_text("utf-8")), "utf-8")
    (DOCS / "reference" / "settings.md").write_text(settings_page(), "utf-8")
