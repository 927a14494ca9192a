"""The HTTP/1.1 client for model servers: one request, and one answer or the kind of failure."""
