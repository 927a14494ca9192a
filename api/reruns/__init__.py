"""Runs lines again: lines of a finished batch (rerun), or of a range of the log (replay)."""
