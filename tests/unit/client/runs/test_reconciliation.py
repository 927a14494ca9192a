"""Reconciliation, compared with a naive count."""

from collections import Counter
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.client.runs.reconciliation import Damaged, differences, reconcile
from tidemill.schemas.resources.batch import FileReceipt, Receipt

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)


def lines(ids: list[str]) -> bytes:
    """One line an id."""
    return b"".join(orjson.dumps({"x": "\n", "custom_id": name}) + b"\n" for name in ids)


@given(
    asked=st.lists(names, unique=True, max_size=20),
    other=st.lists(names, max_size=5),
    data=st.data(),
)
def test_it_agrees_with_a_count(
    tmp_path_factory: pytest.TempPathFactory, asked: list[str], other: list[str], data: st.DataObject
) -> None:
    """Missing, duplicate and foreign lines, distributed over both files."""
    answered = data.draw(
        st.lists(st.sampled_from([*asked, *other]), max_size=30) if asked or other else st.just([])
    )
    cut = data.draw(st.integers(0, len(answered)))
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / name for name in ("in", "out", "err")]
    for path, ids in zip(paths, (asked, answered[:cut], answered[cut:]), strict=True):
        path.write_bytes(lines(ids))
    found = reconcile(*paths)
    counts = Counter(answered)
    assert found.lines == len(asked)
    assert found.missing == sum(name not in counts for name in asked)
    assert found.foreign == sum(number for name, number in counts.items() if name not in asked)
    assert found.duplicate == sum(counts[name] - 1 for name in asked if name in counts)
    assert found.is_exact == (Counter(asked) == counts)


def test_an_input_may_have_a_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    """And no final newline, as for ingest."""
    source, output = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b'\xef\xbb\xbf{"custom_id":"a"}\r\n\r\n{"custom_id":"b"}')
    output.write_bytes(lines(["b", "a"]))
    assert reconcile(source, output, None).is_exact


def test_an_input_with_a_duplicate_id_is_refused(tmp_path: Path) -> None:
    """No batch has such an input."""
    source = tmp_path / "in"
    source.write_bytes(lines(["a", "a"]))
    with pytest.raises(Damaged, match="twice"):
        reconcile(source, None, None)


def test_a_receipt_is_compared_file_by_file(tmp_path: Path) -> None:
    """Each difference is a sentence."""
    source, output = tmp_path / "in", tmp_path / "out"
    source.write_bytes(lines(["a"]))
    output.write_bytes(lines(["a"]))
    found = reconcile(source, output, None)
    assert found.output is not None
    right = Receipt(lines=1, output=found.output)
    assert differences(right, found.output, found.errors) == []
    wrong = right.model_copy(update={"output": None, "errors": FileReceipt(lines=1, bytes=1, sha256="0")})
    assert len(differences(wrong, found.output, found.errors)) == 2
