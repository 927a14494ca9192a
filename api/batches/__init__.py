"""Creating, deleting, reporting and estimating batches."""
