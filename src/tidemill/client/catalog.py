"""The commands below `servers` and `models`, and `apply`."""

import os
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date, time
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import orjson
from pydantic import ValidationError

from tidemill import ownership
from tidemill.client import listing
from tidemill.client.errors import Exit, Refused, UsageError
from tidemill.client.http.client import Client
from tidemill.configuration import misconfigured
from tidemill.configuration.catalog import SETTINGS_FILE
from tidemill.configuration.servers import Model, Server
from tidemill.configuration.settings import NAMED, Settings, content_faults
from tidemill.runtime import server_probe
from tidemill.schemas.endpoints import ENDPOINTS, UNKNOWN
from tidemill.schemas.resources.waiting import USUAL, Reason
from tidemill.terminal import Console, local_time, say, show_json, show_table, words

Kind = Literal["servers", "models"]
COLUMNS = ("server", words("address"), words("models"), "limit", words("state"))


async def list_servers(client: Client, *, as_json: bool) -> Exit:
    """Print the servers on stdout, as a table or as JSON lines."""
    return await listing.show(client, "/admin/servers", {}, COLUMNS, row_of, as_json=as_json)


def row_of(server: dict[str, Any]) -> list[str]:
    """The cells of a server; one that cannot be used may have any settings."""
    settings = server["settings"]
    address, limit = (str(settings.get(name, "")) for name in ("url", "max_in_flight"))
    state = server["fault"] or ("drained" if settings.get("drain") else stall(server))
    return [server["id"], address, ", ".join(server["used_by"]), limit, state]


def stall(server: dict[str, Any]) -> str:
    """What keeps a server from taking calls, as its load says; empty if nothing does."""
    cause = (server.get("load") or {}).get("cause")
    return str(cause["message"]) if cause and Reason(cause["reason"]) not in USUAL else ""


async def list_models(client: Client, *, as_json: bool) -> Exit:
    """Print the models on stdout, as a table or as JSON lines; any key may list them."""
    found = (await client.send_retrying("GET", "/models")).objects("data")
    if as_json:
        for model in found:
            show_json(model)
    else:
        columns = ("model", words("aliases"), words("servers"), words("endpoints"), "state")
        show_table(columns, map(_model_row, found))
    return Exit.OK


def _model_row(model: dict[str, Any]) -> list[str]:
    extras = model["tidemill"]
    lists = (", ".join(extras[name]) for name in ("aliases", "servers", "endpoints"))
    return [model["id"], *lists, "paused" if extras["paused"] else ""]


async def show(client: Client, kind: Kind, name: str, *, as_json: bool) -> Exit:
    """Print a server or a model with its settings, its author and its time on stdout."""
    found = await client.send_retrying("GET", _path(kind, name))
    if as_json:
        show_json(found)
        return Exit.OK
    lines = [f"{field} = {_text(value)}" for field, value in found["settings"].items()]
    lines.append(f"# {'models' if kind == 'servers' else 'servers'}: {', '.join(found['used_by']) or 'none'}")
    lines.append(
        f"# changed by {found['author']} at {local_time(found['changed_at'])}, revision {found['revision']}"
    )
    if found["removed"]:
        lines.append("# removed")
    if found["fault"]:
        lines.append(f"# cannot be used: {found['fault']}")
    say("\n".join(lines))
    return Exit.OK


async def add(console: Console, client: Client, kind: Kind, name: str, words: Iterable[str]) -> Exit:
    """Add a server or a model.

    Raises:
        UsageError: It exists already.
    """
    settings = parsed(words)
    try:
        is_there = not (await client.send_retrying("GET", _path(kind, name)))["removed"]
    except Refused as error:
        if error.status != 404:  # noqa: PLR2004
            raise
        is_there = False
    if is_there:
        raise UsageError(f"{name} exists already: `tidemill {kind} set` changes it")
    found = await client.send_retrying("PUT", _path(kind, name), json={"settings": settings})
    return _done(console, f"Added {name}.", found)


async def change(
    console: Console, client: Client, kind: Kind, name: str, settings: Mapping[str, Any], *, done: str
) -> Exit:
    """Change some settings of a server or a model; None sets the default."""
    found = await client.send_retrying("PATCH", _path(kind, name), json={"settings": settings})
    return _done(console, done, found)


async def remove(console: Console, client: Client, kind: Kind, name: str) -> Exit:
    """Remove a server or a model."""
    found = await client.send_retrying("DELETE", _path(kind, name))
    return _done(console, f"Removed {name}.", found)


async def apply(
    console: Console, client: Client, file: Path | None, *, dry_run: bool, allow_empty: bool = False
) -> Exit:
    """Make servers and models as a settings file says (by default `SETTINGS_FILE`); prints changes on stdout.

    Raises:
        UsageError: The file is not valid, or it has neither servers nor models, and `allow_empty` is not set.
    """
    tables = _tables(file)
    if not any(tables.values()) and not allow_empty:
        raise UsageError(
            f"{file or SETTINGS_FILE} has neither servers nor models; "
            "--allow-empty removes those of an earlier file"
        )
    body = {**tables, "dry_run": dry_run}
    found = await client.send_retrying("POST", "/admin/apply", json=body)
    for line in differences(found["changes"]):
        say(line)
    said = "Nothing has changed yet: without --dry-run it will." if dry_run else "Applied."
    return _done(console, said if found["changes"] else "Nothing changes.", found)


def _tables(named: Path | None) -> dict[str, Any]:
    """The tables of a settings file with servers and models."""
    file = named or Path(SETTINGS_FILE)
    if named is None and os.path.lexists(file):
        ownership.check_found(file, "-f FILE")
    try:
        content = misconfigured.parsed(file.read_bytes(), NAMED)
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from error
    unknown = (f"unknown setting {one}" for one in misconfigured.unknown(content, Settings).values())
    if found := [*content_faults(content), *unknown]:
        raise UsageError("\n".join(f"{file}: {fault}" for fault in found))
    tables = {name: content.get(name, {}) for name in ("servers", "models")}
    for name, table in tables.items():
        _check_json(f"{file}: {name}", table)
    return tables


def _check_json(place: str, value: Any) -> None:
    """Refuse what TOML has and JSON lacks: times."""
    match value:
        case dict():
            for name, below in value.items():
                _check_json(f"{place}.{name}", below)
        case list():
            for number, below in enumerate(value):
                _check_json(f"{place}.{number}", below)
        case date() | time():
            raise UsageError(f"{place}: a date or a time is text here; put it in quotes")


def differences(found: Iterable[dict[str, Any]]) -> Iterable[str]:
    """Changes as lines: `+` for new, `-` for gone, `~` for a changed setting."""
    for one in found:
        before, after = one["before"], one["after"]
        if before is None:
            yield f"+ {one['key']}: {_text(after)}"
        elif after is None:
            yield f"- {one['key']}"
        else:
            for name in sorted(before | after):
                yield f"~ {one['key']}: {name}: {_text(before.get(name))} -> {_text(after.get(name))}"


async def test(console: Console, client: Client, kind: Kind, name: str) -> Exit:
    """Make one small call to a server, or to each server of a model, from this machine; `INEXACT` if one fails."""
    found = await client.send_retrying("GET", _path(kind, name))
    used = found["used_by"][:1] if kind == "servers" else found["used_by"]
    others = {one: await client.send_retrying("GET", _path(_OTHER[kind], one)) for one in used}
    try:
        if kind == "servers":
            server = Server.model_validate(found["settings"])
            pairs = [(name, server, one, Model.model_validate(others[one]["settings"])) for one in used]
            if not pairs:
                return _listed(console, name, await server_probe.models(server))
        else:
            model = Model.model_validate(found["settings"])
            pairs = [(one, Server.model_validate(others[one]["settings"]), name, model) for one in used]
    except ValidationError as error:
        raise UsageError("\n".join(misconfigured.faults(error))) from error
    return Exit.OK if all([await _call(console, *pair) for pair in pairs]) else Exit.INEXACT


_OTHER: Mapping[Kind, Kind] = {"servers": "models", "models": "servers"}


async def _call(console: Console, server: str, settings: Server, name: str, model: Model) -> bool:
    endpoint = model.endpoints[0]
    if (lack := settings.lack) is not None:
        console.print(f"{server}: {lack}, so no call is made from here", style="red")
        return False
    body = {
        **ENDPOINTS.get(endpoint, UNKNOWN).smallest,
        "model": model.upstream_model or name,
        **model.body_forced,
    }
    answer = await server_probe.call(settings, endpoint, body)
    style = None if answer.is_good else "red"
    console.print(f"{server}: {name}, {endpoint}: {answer.text} ({answer.seconds:.2f} s)", style=style)
    return answer.is_good


def _listed(console: Console, name: str, found: "list[str] | server_probe.NoModels") -> Exit:
    if isinstance(found, server_probe.NoModels):
        console.print(f"{name}: {found.why}", style="red")
        return Exit.INEXACT
    console.print(f"{name} answers, and lists {', '.join(found) or 'no models'}; no model names it")
    return Exit.OK


def parsed(words: Iterable[str]) -> dict[str, Any]:
    """Settings of words like `max_in_flight=64`; without a value, None.

    A value is TOML; one that is not is text, so that an address needs no quotes.

    Raises:
        UsageError: A word has no name, a name comes twice, or a value cannot be a setting, such as a date.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise UsageError(f"'{word}' is not of the form NAME=VALUE, like max_in_flight=64 or temperature=0")
        if name in found:
            raise UsageError(f"{name} is given twice")
        try:
            found[name] = tomllib.loads(f"value = {value}")["value"] if value else None
        except tomllib.TOMLDecodeError:
            found[name] = value
        except RecursionError as error:
            raise UsageError(f"{name}: it is nested too deeply") from error
        except ValueError as error:
            raise UsageError(f"{name}: a number has too many digits") from error
        _check_json(name, found[name])
    return found


def _done(console: Console, said: str, found: dict[str, Any]) -> Exit:
    for warning in found["warnings"]:
        console.print(f"warning: {warning}", style="yellow")
    console.print(said)
    return Exit.OK


def _path(kind: Kind, name: str) -> str:
    return f"/admin/{kind}/{quote(name, safe='/')}"


def _text(value: object) -> str:
    return "default" if value is None else orjson.dumps(value).decode()
