"""Which line is called next, and why the others wait."""
