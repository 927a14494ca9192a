"""HTTP/1.1 to the model servers: one request, one answer or the reason why there is none."""
