"""HTTP client of the batch service."""
