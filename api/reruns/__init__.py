"""Running lines again: those of a finished batch (rerun), or of a range of the log (replay)."""
