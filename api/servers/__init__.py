"""Servers and models as they work now."""
