"""Options and arguments that several commands share, alone or as groups (see `invocation`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidemill.terminal import for_people

if TYPE_CHECKING:
    from tidemill.client.runs.paths import Sink

BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="Batch id, or its last characters.")]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object per line; the default if stdout is not a terminal.",
        callback=lambda value: value or not for_people(),
    ),
]
"""True also if stdout is not a terminal: all commands that show data follow this rule."""
AnyProject = Annotated[
    str | None,
    typer.Option("--project", help="Another project, or * for all (operator key)."),
]
Config = Annotated[Path | None, typer.Option("--config", help="Settings file; by default ./tidemill.toml.")]
DataFolder = Annotated[
    Path | None, typer.Option("--data", help="Data folder of the local service; by default .tidemill.")
]


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """The service to talk to."""

    base_url: Annotated[
        str | None,
        typer.Option(
            help="Address of the service, with /v1; by default TIDEMILL_BASE_URL, else the local service."
        ),
    ] = None
    api_key: Annotated[
        str | None, typer.Option(help="API key; by default TIDEMILL_API_KEY, else the key of the local service.")
    ] = None
    data: DataFolder = None


@dataclass(frozen=True, kw_only=True)
class OperatorOptions:
    """The installation to operate on."""

    config: Config = None
    data: DataFolder = None


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """Where the results of a batch go."""

    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write results here instead of stdout.")
    ] = None
    errors: Annotated[
        Path | None,
        typer.Option("--errors", help="Write failed lines here; by default beside --output."),
    ] = None
    receipt: Annotated[Path | None, typer.Option("--receipt", help="Write the receipt here.")] = None
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False
    show_all: Annotated[bool, typer.Option("--all", help="Show every error instead of the first 20.")] = False

    def sink(self) -> "Sink":
        """The paths, for the client."""
        from tidemill.client.runs.paths import Sink

        return Sink(output=self.output, errors=self.errors, receipt=self.receipt, force=self.force)


@dataclass(frozen=True, kw_only=True)
class NewBatchOptions(ResultOptions):
    """Where the results of a new batch go; the same command resumes it."""

    again: Annotated[bool, typer.Option("--again", help="Start over instead of resuming.")] = False


@dataclass(frozen=True, kw_only=True)
class RerunOptions:
    """Changes that a rerun makes."""

    model: Annotated[str | None, typer.Option(help="Run the lines on this model.")] = None
    window: Annotated[str | None, typer.Option(help="Completion window; by default as before.")] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show lines, tokens and cost.")] = False
