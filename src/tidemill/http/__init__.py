"""HTTP requests to servers that others operate."""
