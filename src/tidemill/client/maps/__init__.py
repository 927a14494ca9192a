"""`tidemill map` and `tidemill embed`: parts of a table run as batches, and the answers join the rows."""
