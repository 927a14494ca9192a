"""The commands `init`, `up`, `backend-demo` and `bench`, and those that run one stage."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tidemill.cli.invocation import load_settings, refuse, silence_kafka
from tidemill.cli.options import Config


def init(
    server: Annotated[
        list[str] | None, typer.Option(help="Ask this address too, like http://gpu-1:8000/v1; repeatable.")
    ] = None,
    config: Config = None,
) -> None:
    """Look for inference servers and write `tidemill.toml`.

    Asks the usual ports of vLLM, llama.cpp, Ollama and LM Studio on this machine for their models. An existing
    file stays as it is.

    Example: `tidemill init --server http://gpu-1:8000/v1`
    """
    import asyncio

    from tidemill.configuration.settings import file_of
    from tidemill.local import init as work
    from tidemill.ops import OperatorError
    from tidemill.terminal import say

    file = file_of(config)
    if file.exists():
        refuse(work.exists(file))
    try:
        found = asyncio.run(work.look(work.candidates(server or ())))
        work.write(file, work.settings(found))
    except OperatorError as error:
        refuse(str(error))
    for one in found:
        say(str(one))
    say(work.next_steps(found, file))


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
    are installed. Exit codes: 0 stopped, 1 the start failed or the records are
    gone, 2 it cannot start before you change something.

    Example: `tidemill up --port 8080`
    """
    from tidemill.local import up as work

    silence_kafka()
    raise typer.Exit(work.main(load_settings(config, port=port, data=data), config))


def backend_demo(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 picks a free one.")] = 9100,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of the chat model.")] = 1,
) -> None:
    """Serve two small demo models: SmolLM2-135M and WordLlama.

    Example: `tidemill backend-demo --port 9100`
    """
    import asyncio

    from tidemill.local import demo

    if not demo.is_installed():
        refuse(f"the demo models are not installed: {demo.INSTALL}")
    from tidemill.configuration.settings import SettingsError
    from tidemill.local.demo.app import serve
    from tidemill.local.demo.weights import WeightsError

    try:
        asyncio.run(serve(port=port, threads=threads))
    except (SettingsError, WeightsError) as error:
        refuse(str(error))
    except OSError as error:
        refuse(f"the demo models cannot be served: {error}")


def bench(
    mock: Annotated[str, typer.Option(help="Address of the mock backend, whose behaviour is set over HTTP.")],
    *,
    case: Annotated[list[str] | None, typer.Option(help="Run only this case; repeatable.")] = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=100, help="Runs of each case and of its bare client, in turn.")
    ] = 3,
    lines_max: Annotated[
        int | None, typer.Option(min=1, help="Shorten larger batches to this number of lines.")
    ] = None,
    bare: Annotated[
        Path | None, typer.Option(help="Program to run as the bare client, instead of the one in Python.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the results as JSON.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Show these saved results beside the new ones.")] = None,
) -> None:
    """Measure throughput and CPU per line on this machine, beside a bare client that makes the same calls.

    Example: `tidemill bench --mock http://127.0.0.1:9100 --rounds 1`
    """
    from tidemill.bench.cases import CASES
    from tidemill.bench.run import CompareError, Files, main

    known = [each.name for each in CASES]
    if unknown := [name for name in case or () if name not in known]:
        refuse(f"unknown case {', '.join(unknown)}; known are {', '.join(known)}")
    try:
        main(mock, case or [], rounds, bare, Files(save=save, compare=compare), lines_max=lines_max)
    except (CompareError, OSError) as error:
        refuse(str(error))


def _stage(module: str, does: str) -> Callable[..., None]:
    """The command that runs a stage; a missing or invalid setting ends it with a message."""
    name = module.split(".")[1]

    def command(config: Config = None) -> None:
        from importlib import import_module

        from tidemill.configuration.settings import SettingsError
        from tidemill.runtime.memory import return_freed_memory

        main, settings = import_module(module).main, load_settings(config)
        return_freed_memory()
        try:
            main(settings)
        except SettingsError as error:
            refuse(str(error))

    command.__name__ = name
    command.__doc__ = f"{does}\n\nExample: `tidemill {name} --config tidemill.toml`"
    return command


api = _stage("tidemill.api.app", "Run the REST API.")
ingest = _stage("tidemill.ingest.app", "Run ingest: validates inputs and publishes their lines.")
processors = _stage("tidemill.processors.app", "Run processors: calls the backends.")
results = _stage("tidemill.results.app", "Run results: keeps the state of batches and writes their files.")
webhooks = _stage(
    "tidemill.webhooks.app", "Run webhooks: calls the webhook endpoints of projects when batches end."
)
