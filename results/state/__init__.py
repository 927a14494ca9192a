"""The state of batches: applied from facts, kept in tables."""
