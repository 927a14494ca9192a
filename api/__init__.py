"""The stage `api`: OpenAI's Files and Batches over HTTP, on top of the log and the store."""
