"""Gathers result lines into records, and sends the records to the log."""
