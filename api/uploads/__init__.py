"""Uploads: parses forms while they arrive, and assembles uploads in parts."""
