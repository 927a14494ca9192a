"""Lines once more: of a batch that is over, or out of the log."""
