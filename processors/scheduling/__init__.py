"""Chooses the next line, and reports why the others wait."""
