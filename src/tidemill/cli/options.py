"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

BatchId = Annotated[str, typer.Argument(help="Id of the batch, or its last characters as `list` shows them.")]
OutputFile = Annotated[Path | None, typer.Option("-o", "--output", help="Where results go; else to stdout.")]
ErrorsFile = Annotated[Path | None, typer.Option("--errors", help="Where failed lines go; else beside -o.")]
ReceiptFile = Annotated[Path | None, typer.Option("--receipt", help="Where the receipt is written.")]
OtherModel = Annotated[str | None, typer.Option(help="Another model than before.")]
OtherWindow = Annotated[str | None, typer.Option(help="How long it may take; else as before.")]
Again = Annotated[bool, typer.Option("--again", help="Run it anew, where the same was begun before.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")]
Everything = Annotated[bool, typer.Option("--all", help="Show every fault and every reason.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell lines, batches, tokens and cost.")]
