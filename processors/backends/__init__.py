"""The servers of a model: their breakers, token buckets and metrics."""
