"""The stage that owns batch state: outcomes are folded into counts, and compacted into files."""
