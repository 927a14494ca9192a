"""The state of batches: folded from facts, kept in tables."""
