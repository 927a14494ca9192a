"""The HTTP server: connections, TLS, bounds of the protocol, and downloads."""
