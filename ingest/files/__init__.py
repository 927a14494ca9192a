"""Input files: checked line by line, then published as requests."""
