"""The HTTP server: connections, TLS, and what the protocol bounds."""
