"""The commands `rerun` and `replay`: run lines again as a new batch."""

import datetime as dt
import hashlib
import re
from typing import Any, Final

import orjson

from tidemill.client.batches import follow
from tidemill.client.errors import Exit, Refused, UsageError
from tidemill.client.http.client import Client
from tidemill.client.runs.outcome import name_of
from tidemill.client.runs.paths import Sink
from tidemill.schemas.resources.batch import Batch, window_seconds
from tidemill.terminal import Console
from tidemill.wording import counted

REPLAYS: Final = "/replays"
DELETED: Final = "batch_deleted"
ENDPOINT_FIELD: Final = "'source.endpoint'"
"""What the service calls the option `--endpoint` of `replay`."""
_EDGE: Final = re.compile(r"\d+\Z|\d{4}-")
NAMES = ("unfinished", "failed", "expired", "cancelled", "all")
CODE = "code="


def rerun_body(*, only: str, model: str | None, window: str | None, of_model: str | None = None) -> dict[str, Any]:
    """The request body of a rerun of the lines `only`: one of `NAMES`, or `code=` with comma-separated codes.

    With `of_model` only of the lines of this model.

    Raises:
        UsageError: `only` is invalid.
    """
    if only.startswith(CODE) and (codes := [code for code in only.removeprefix(CODE).split(",") if code]):
        lines: Any = {"codes": codes}
    elif only in NAMES:
        lines = only
    else:
        raise UsageError(f"--only: {only} is not one of {', '.join(NAMES)} or code=CODE,…")
    return {"lines": lines, **_changes(model, window), **({"of_model": of_model} if of_model else {})}


def _changes(model: str | None, window: str | None) -> dict[str, str]:
    changes = {"model": model, "completion_window": window}
    return {name: value for name, value in changes.items() if value is not None}


async def create(
    console: Console,
    client: Client,
    batch_id: str | None,
    body: dict[str, Any],
    sink: Sink,
    *,
    again: bool = False,
    dry_run: bool = False,
    show_all: bool = False,
) -> Exit:
    """Create a batch of lines that ran before, and follow it as `run` does.

    A replay has no `batch_id`. `again` creates a new batch even if the same rerun exists; a dry run only shows the
    plan.
    """
    sink = sink.checked(None)
    sink.check_new()
    path = REPLAYS if batch_id is None else f"/batches/{await client.find(batch_id)}/rerun"
    # The lines of a finished batch and of a fixed range do not change, so equal requests are one batch.
    key = None if again else hashlib.sha256(f"{path}\0{orjson.dumps(body)!r}".encode()).hexdigest()
    try:
        if dry_run:
            return _show_plan(console, await client.make(path, {**body, "dry_run": True}))
        batch = (await client.make(path, body, key=key)).read(Batch)
    except Refused as error:
        if error.code == DELETED:
            raise UsageError(
                "this command created a batch before, which is deleted; --again creates a new one"
            ) from error
        if ENDPOINT_FIELD in str(error):
            raise UsageError(str(error).replace(ENDPOINT_FIELD, "--endpoint")) from error
        raise
    if key is not None:
        console.print(
            f"{name_of(batch)} runs these lines. The same command resumes it; --again creates a new one."
        )
    return await follow(console, client, batch.id, sink, None, show_all=show_all)


def _show_plan(console: Console, plan: dict[str, Any]) -> Exit:
    cost, most = plan["cost"], plan["output_tokens_max"]
    output = "unbounded" if most is None else f"at most {most:,}"
    batches = f" of {counted(plan['batches'], 'batch')}" if "batches" in plan else ""
    console.print(f"{counted(plan['lines'], 'line')}{batches}, for {plan['endpoint']}")
    console.print(f"tokens: about {plan['input_tokens']:,} in, {output} out")
    console.print(f"cost: {cost['min']} to {cost['max']}" if cost["max"] else f"cost: at least {cost['min']}")
    if plan["is_too_large"]:
        console.print("This exceeds what one batch may hold: choose fewer lines.", style="yellow")
    if lost := plan.get("lost_lines"):
        console.print(f"lost, since their input files are deleted: {counted(lost, 'more line')}", style="yellow")
    if skipped := plan.get("skipped_lines"):
        console.print(f"left out: {counted(skipped, 'more line')} of deleted batches or files", style="yellow")
    return Exit.OK


def is_fixed(source: dict[str, str]) -> bool:
    """Whether a range of the log stays the same: both edges are given, as times or offsets."""
    return all(_EDGE.match(source.get(name, "")) for name in ("from", "to"))


def replay_body(
    source: dict[str, str], *, model: str | None, window: str | None, now: dt.datetime | None = None
) -> dict[str, Any]:
    """The request body of a replay; `from` and `to` of the source may also be relative: `-90m`, `-2h`, `-1d`.

    Raises:
        UsageError: `from` or `to` is invalid.
    """
    at = now or dt.datetime.now(dt.UTC)
    edges = {name: absolute(source[name], at) for name in ("from", "to") if name in source}
    return {"source": source | edges, **_changes(model, window)}


def absolute(text: str, now: dt.datetime) -> str:
    """A time or an offset as it is, a relative time as an absolute one.

    Raises:
        UsageError: It is none of these.
    """
    if _EDGE.match(text):
        return text
    try:
        at = now - dt.timedelta(seconds=window_seconds(text[1:] if text.startswith("-") else ""))
    except (ValueError, OverflowError) as error:
        message = f"{text} is neither a time like 2026-11-23T09:00:00Z or -2h nor a log offset"
        raise UsageError(message) from error
    return at.isoformat(timespec="milliseconds")
