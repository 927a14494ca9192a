"""The servers of a model: the pool, circuit breakers, token buckets and metrics pollers."""
