"""The assigned partitions: their windows, the recovery of outcomes, and records that cannot be opened."""
