"""The commands `rerun` and `replay`: lines that were run before, once more."""

import datetime as dt
import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

import orjson

from tidemill.client.batches import followed
from tidemill.client.exit_codes import Exit
from tidemill.client.http import Client, Refused
from tidemill.client.runs.outcome import name_of
from tidemill.client.runs.paths import InputFault, Sink
from tidemill.client.target import Target
from tidemill.schemas.resources.batch import Batch
from tidemill.terminal import Console

REPLAYS: Final = "/replays"
DELETED: Final = "batch_deleted"
_AGO: Final = re.compile(r"-(\d{1,6})([smhd])\Z")
_EDGE: Final = re.compile(r"\d+\Z|\d{4}-")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
NAMES = ("unfinished", "failed", "expired", "cancelled", "all")
CODE = "code="


@dataclass(frozen=True, kw_only=True)
class How:
    """What else is wanted of a batch of lines that were run before.

    Attributes:
        dry_run: Only say what it would be.
        again: Make another one, where the same was made before.
        force: Overwrite files that are there.
        everything: Show every reason.
    """

    dry_run: bool = False
    again: bool = False
    force: bool = False
    everything: bool = False


def wished(*, only: str, model: str | None, window: str | None) -> dict[str, Any]:
    """The body of a rerun.

    Args:
        only: One of `NAMES`, or `code=` with codes or HTTP statuses, commas between them.
        model: Another model.
        window: Another completion window.

    Raises:
        InputFault: `only` is none of these.
    """
    if only.startswith(CODE) and (codes := [code for code in only.removeprefix(CODE).split(",") if code]):
        lines: Any = {"codes": codes}
    elif only in NAMES:
        lines = only
    else:
        raise InputFault(f"--only takes {', '.join(NAMES)} or code=CODE,…; not {only}")
    options = {"model": model, "completion_window": window}
    return {"lines": lines, **{name: value for name, value in options.items() if value is not None}}


async def make(
    talk: Console, target: Target, batch_id: str | None, wish: dict[str, Any], sink: Sink, *, how: How
) -> Exit:
    """Make a batch of lines that were run before, and follow it as `run` does.

    Args:
        talk: Where all talk goes.
        target: The service.
        batch_id: The batch whose lines they are, or a part of its id; None for a part of the log.
        wish: The body; see `wished` and `replayed`.
        sink: Where results go.
        how: What else is wanted.
    """
    sink = sink.checked(None, force=how.force)
    async with Client(target.base_url, target.api_key) as client:
        path, key = REPLAYS, None
        if batch_id is not None:
            old = await client.find(batch_id)
            path = f"/batches/{old}/rerun"
            # The lines of a batch that is over do not change, so the same rerun is one batch.
            key = None if how.again else hashlib.sha256(f"{old}\0{orjson.dumps(wish)!r}".encode()).hexdigest()
        if how.dry_run:
            return _told(talk, await client.make(path, {**wish, "dry_run": True}))
        try:
            batch = Batch.model_validate(await client.make(path, wish, key=key))
        except Refused as error:
            if error.code == DELETED:
                raise InputFault("the batch that this made before is deleted: --again makes another") from error
            raise
        if key is not None:
            talk.print(
                f"{name_of(batch)} runs these lines. The same command goes on with it; --again makes another."
            )
        return await followed(
            talk, client, batch.id, sink, None, wants=True, force=how.force, everything=how.everything
        )


def _told(talk: Console, plan: dict[str, Any]) -> Exit:
    cost, most = plan["cost"], plan["output_tokens_max"]
    output = "an open number of" if most is None else f"at most {most:,}"
    batches = f" of {counted(plan['batches'], 'batch')}" if "batches" in plan else ""
    talk.print(f"{counted(plan['lines'], 'line')}{batches}, for {plan['endpoint']}")
    talk.print(f"tokens: about {plan['input_tokens']:,} in, {output} out")
    talk.print(f"cost: {cost['min']} to {cost['max'] or '?'}")
    if plan["is_too_large"]:
        talk.print("A batch may not have so many lines: choose fewer.", style="yellow")
    if lost := plan.get("lost_lines"):
        talk.print(f"{counted(lost, 'more line')} cannot be run: their input files are deleted.", style="yellow")
    if skipped := plan.get("skipped_lines"):
        talk.print(f"{counted(skipped, 'more line')} of deleted batches or files stay out.", style="yellow")
    return Exit.OK


def counted(number: int, noun: str) -> str:
    """So many of something, which has its plural where it needs one."""
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"


def replayed(
    source: dict[str, str], *, model: str | None, window: str | None, now: dt.datetime | None = None
) -> dict[str, Any]:
    """The body of a replay.

    Args:
        source: As the API has it; `from` and `to` may also be so long ago: `-90m`, `-2h`, `-1d`.
        model: Another model.
        window: Another completion window.
        now: From when that counts.

    Raises:
        InputFault: An edge is none of these.
    """
    at = now or dt.datetime.now(dt.UTC)
    edges = {name: since(source[name], at) for name in ("from", "to") if name in source}
    options = {"model": model, "completion_window": window}
    return {"source": source | edges, **{name: value for name, value in options.items() if value is not None}}


def since(text: str, now: dt.datetime) -> str:
    """An edge of a range; one that is so long ago becomes a time.

    Raises:
        InputFault: It is neither that, nor a time, nor an offset.
    """
    if _EDGE.match(text):
        return text
    if (ago := _AGO.match(text)) is None:
        raise InputFault(
            f"{text} is no edge of a range: it is a time like 2026-11-23T09:00:00Z, -2h, or an offset"
        )
    return (now - dt.timedelta(**{_UNITS[ago[2]]: int(ago[1])})).isoformat(timespec="milliseconds")
