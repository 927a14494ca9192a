"""The Python client of programs."""
