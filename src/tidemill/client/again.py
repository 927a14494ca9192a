"""The commands `retry` and `replay`: lines that were run before, once more."""

import datetime as dt
import re
from typing import Any, Final

from tidemill.client.ending import Exit
from tidemill.client.place import InputFault, Sink
from tidemill.client.run import followed
from tidemill.client.service import Client
from tidemill.client.target import Target
from tidemill.schemas.batch import Batch
from tidemill.terminal import Console

PATH: Final = "/replays"
_AGO: Final = re.compile(r"-(\d{1,6})([smhd])\Z")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
NAMES = ("failed", "expired", "cancelled", "all")
CODE = "code="


async def retry(talk: Console, target: Target, batch_id: str, wish: dict[str, Any], sink: Sink) -> Exit:
    """Make a batch of lines of one that is over, and follow it as `run` does.

    Args:
        talk: Where all talk goes.
        target: The service.
        batch_id: The batch that is over.
        wish: See `wished`.
        sink: Where results go.
    """
    sink = sink.checked(None)
    async with Client(target.base_url, target.api_key) as client:
        batch = await client.retry(batch_id, wish)
        talk.print(f"{batch.id} has lines of {batch_id}")
        return await followed(talk, client, batch.id, sink, None, wants_results=True)


def wished(*, only: str, model: str | None, window: str | None) -> dict[str, Any]:
    """The body of a retry.

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


async def replay(talk: Console, target: Target, wish: dict[str, Any], sink: Sink) -> Exit:
    """Make a batch of lines of the past, and follow it as `run` does.

    Args:
        talk: Where all talk goes.
        target: The service.
        wish: See `replayed`.
        sink: Where results go.
    """
    sink = sink.checked(None)
    async with Client(target.base_url, target.api_key) as client:
        batch = Batch.model_validate(await client.make(PATH, wish))
        talk.print(f"{batch.id} has {'lines' if 'model' in wish['source'] else 'all lines'} of the past")
        return await followed(talk, client, batch.id, sink, None, wants_results=True)


async def tell(talk: Console, target: Target, wish: dict[str, Any]) -> Exit:
    """Say what a replay would be, and make nothing."""
    async with Client(target.base_url, target.api_key) as client:
        plan = await client.make(PATH, {**wish, "dry_run": True})
    cost, most = plan["cost"], plan["output_tokens_max"]
    output = "an open number of" if most is None else f"at most {most:,}"
    talk.print(f"{counted(plan['lines'], 'line')} of {counted(plan['batches'], 'batch')}, for {plan['endpoint']}")
    talk.print(f"tokens: about {plan['input_tokens']:,} in, {output} out")
    talk.print(f"cost: {cost['min']} to {cost['max'] or '?'}")
    if plan["is_too_large"]:
        talk.print("These are more lines than a batch may have: narrow the range.", style="yellow")
    if plan["lost_lines"]:
        talk.print(f"{plan['lost_lines']:,} lines more are lost with their input files.", style="yellow")
    if plan["skipped_lines"]:
        talk.print(
            f"{plan['skipped_lines']:,} lines more are of batches or input files that are deleted, and stay out.",
            style="yellow",
        )
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
    """
    at = now or dt.datetime.now(dt.UTC)
    edges = {name: since(source[name], at) for name in ("from", "to") if name in source}
    options = {"model": model, "completion_window": window}
    return {"source": source | edges, **{name: value for name, value in options.items() if value is not None}}


def since(text: str, now: dt.datetime) -> str:
    """An edge of a range; one that is so long ago becomes a time."""
    if (ago := _AGO.match(text)) is None:
        return text
    return (now - dt.timedelta(**{_UNITS[ago[2]]: int(ago[1])})).isoformat(timespec="milliseconds")
