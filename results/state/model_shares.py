"""Counts, usage and cost of each model in a batch whose lines name several; other batches stay as they are."""

from collections.abc import Iterable, Mapping, Sequence

from tidemill.schemas.resources.batch import ModelShare, RequestCounts
from tidemill.schemas.resources.by_model import ModelLines, ModelResult

Shares = tuple[ModelShare, ...]


def accepted(models: Iterable[ModelLines]) -> Shares:
    """The models of a batch that ingest has accepted."""
    return tuple(
        ModelShare(model=model.model, request_counts=RequestCounts(total=model.lines), copies=model.copies)
        for model in models
    )


def counted(shares: Shares, final_lines: Mapping[tuple[int, bool], int]) -> Shares:
    """Update the counts of each model; none goes back.

    Args:
        shares: The models.
        final_lines: Final lines by the number of their model and whether they failed (`LineBitmap.by_model`).
    """
    return tuple(
        _with_counts(
            share,
            completed=max(share.request_counts.completed, final_lines[number, False]),
            failed=max(share.request_counts.failed, final_lines[number, True]),
        )
        for number, share in enumerate(shares)
    )


def final(shares: Shares, results: Sequence[ModelResult]) -> Shares:
    """The counts, usage and cost of each model, once the files are written; empty without models."""
    return tuple(
        _with_counts(share, completed=result.completed, failed=result.failed).model_copy(
            update={"usage": result.usage, "cost": result.bill.cost}
        )
        for share, result in zip(shares, results, strict=False)
    )


def _with_counts(share: ModelShare, *, completed: int, failed: int) -> ModelShare:
    counts = share.request_counts.model_copy(update={"completed": completed, "failed": failed})
    return share.model_copy(update={"request_counts": counts})
