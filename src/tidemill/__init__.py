"""Tidemill: an OpenAI-compatible Batch API as a stream processor on a message log."""

__version__ = "0.1.0"
