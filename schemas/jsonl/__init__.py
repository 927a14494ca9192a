"""JSON lines: their schemas, their places in a file, and their errors."""
