"""Results on their way to the log."""
