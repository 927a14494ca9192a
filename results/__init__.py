"""The stage that owns batch state: outcomes are applied into counts, and compacted into files."""
