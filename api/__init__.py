"""The stage `api`: OpenAI's Files and Batches API over HTTP, on top of the log and the store."""
