"""The commands `retry` and `replay`: lines that were run before, once more."""

from typing import Any

from rich.console import Console

from tidemill.client.ending import Exit, printable
from tidemill.client.place import InputFault, Sink
from tidemill.client.run import followed
from tidemill.client.service import Client
from tidemill.client.target import Target

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
        talk.print(f"{batch.id} has lines of {printable(batch_id)}")
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
