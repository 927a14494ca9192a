"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="Batch id, or its last characters.")]
OutputFile = Annotated[Path | None, typer.Option("-o", "--output", help="Write results here instead of stdout.")]
ErrorsFile = Annotated[
    Path | None,
    typer.Option("--errors", help="Write failed lines here; by default beside --output."),
]
ReceiptFile = Annotated[Path | None, typer.Option("--receipt", help="Write the receipt here.")]
OtherModel = Annotated[str | None, typer.Option(help="Run the lines on this model.")]
OtherWindow = Annotated[str | None, typer.Option(help="Completion window; by default as before.")]
Again = Annotated[bool, typer.Option("--again", help="Start over instead of resuming.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
ShowAll = Annotated[bool, typer.Option("--all", help="Show every error instead of the first 20.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show lines, tokens and cost.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
AnyProject = Annotated[
    str | None,
    typer.Option("--project", help="Another project, or * for all (operator key)."),
]

BaseUrl = Annotated[
    str | None,
    typer.Option(help="Address of the service, with /v1; by default TIDEMILL_BASE_URL, else the local service."),
]
ApiKey = Annotated[
    str | None, typer.Option(help="API key; by default TIDEMILL_API_KEY, else the key of the local service.")
]
DataFolder = Annotated[Path | None, typer.Option("--data", help="Data folder of the local service.")]
Config = Annotated[Path | None, typer.Option("--config", help="Settings file; by default ./tidemill.toml.")]
