"""Anthropic's Message Batches API: the same batches, in the shapes of Anthropic's SDKs."""
