"""The topics, and what their records hold."""
