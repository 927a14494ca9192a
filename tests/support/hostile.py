"""A project whose running batches name every file and batch of other projects."""

from typing import Final

import pytest

from tidemill.api.view.view import View
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.resources.batch import Batch, Status

PROJECT: Final = "hostile"


def intrude(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, it creates a batch of each id right before a view shows what has the id."""
    put_file, put_batch = View.put_file, View.put_batch

    def name(view: View, named: str) -> None:
        batch = Batch(
            id=f"{named}-named", endpoint="/v1/embeddings", input_file_id=named, completion_window="24h",
            status=Status.VALIDATING, created_at=1, expires_at=2,
        )  # fmt: skip
        put_batch(view, BatchRecord(project=PROJECT, batch=batch))

    def naming_file(view, record, offset):
        name(view, record.file.id)
        put_file(view, record, offset)

    def naming_batch(view, record):
        name(view, record.batch.id)
        name(view, record.batch.input_file_id)
        return put_batch(view, record)

    monkeypatch.setattr(View, "put_file", naming_file)
    monkeypatch.setattr(View, "put_batch", naming_batch)
