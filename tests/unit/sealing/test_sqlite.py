"""The table of wrapped keys."""

from tidemill.sealing import sqlite
from tidemill.sealing.sqlite import Secrets


def test_most_wrapped_keys_are_not_in_memory(monkeypatch):
    """Only those of recently requested batches; all are found, oldest first."""
    monkeypatch.setattr(sqlite, "CACHED_MAX", 10)
    kept = Secrets()
    for number in range(1_000):
        kept.put(f"batch_{number % 500}", f"{number}", b"%d" % number)
    assert all(kept.of(f"batch_{n}") == {f"{n}": b"%d" % n, f"{n + 500}": b"%d" % (n + 500)} for n in range(500))
    assert len(kept._cached) == 10
    assert kept.of("batch_none") == {}
    kept.put("batch_none", "late", b"x")
    assert kept.of("batch_none") == {"late": b"x"}
    assert (kept.drop("batch_0", "0"), kept.drop("batch_0", "0"), kept.of("batch_0")) == (
        True,
        False,
        {"500": b"500"},
    )
    assert [key for _, key, _ in kept.oldest()] == [*map(str, range(1, 1_000)), "late"]
