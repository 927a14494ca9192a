"""Requests that come in bodies: batches without an uploaded file."""
