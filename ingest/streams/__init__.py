"""Streams of direct producers: each becomes a batch."""
