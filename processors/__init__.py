"""A request becomes an outcome: one Faust app per model calls its backends and sends the results to the log."""
